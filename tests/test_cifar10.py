"""What is published of CIFAR-10: the document and the verdicts are those of the published rows, and of nothing else."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import cifar10
from mi_ray.figures import claims
from mi_ray.figures.names import parameters
from mi_ray.statistics import COUNTED
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells, read_records
from mi_ray.sweep_files import load_sweep
from mi_ray.zoo import zoo_card, zoo_names

STORE = Store(cifar10.PUBLISHED)


@pytest.fixture(scope="module")
def decided() -> pd.DataFrame:
    return claims.facts(STORE, claims.read_claims(cifar10.CLAIMS))


def test_every_number_of_the_document_is_made_from_the_published_rows(decided: pd.DataFrame) -> None:
    assert (cifar10.DOCS / "cifar10.md").read_text(encoding="utf-8") == cifar10.document(STORE, decided)


@pytest.mark.parametrize("name", zoo_names())
def test_the_cards_of_the_zoo_say_what_the_published_rows_say(name: str) -> None:
    assert zoo_card(name)["measured"] == cifar10.measured(STORE, name)


def test_readme_begins_with_verdicts_of_the_published_rows(decided: pd.DataFrame) -> None:
    text = cifar10.README.read_text(encoding="utf-8")
    assert cifar10.readme(text, decided) == text


def test_the_committed_verdicts_are_those_that_the_rows_give(decided: pd.DataFrame) -> None:
    written = pd.read_csv(cifar10.PUBLISHED / "claims.csv")
    assert written["verdict"].tolist() == decided["verdict"].tolist()
    assert {"holds", "does not hold", "undecided"} <= set(decided["verdict"])


@pytest.mark.parametrize("study", STORE.folders("studies"))
def test_accuracies_are_the_shares_of_the_published_points(study: str) -> None:
    cells, rows = read_cells(STORE, study), read_records(STORE, study, columns=COUNTED)
    rows = rows[~rows["selection"].astype(bool)]
    share = rows.groupby("cell")["correct_draws"].mean()
    done = cells[(cells["state"] == "done") & (cells["attack"] != "worst_case")].set_index("cell")
    assert ((share.loc[done.index] / done["draws"] - done["accuracy"]).abs() < 1e-9).all()


def test_nothing_that_is_published_says_where_it_was_made() -> None:
    texts = [
        path.read_text(encoding="utf-8")
        for path in Path(cifar10.PUBLISHED).rglob("*")
        if path.suffix in (".yaml", ".json", ".md", ".csv")
    ]
    assert texts
    assert not any(re.search(r"(?<![\w.])/(root|work|home|tmp)/", text) for text in texts)


def test_all_of_it_is_small() -> None:
    assert sum(path.stat().st_size for path in Path(cifar10.PUBLISHED).rglob("*") if path.is_file()) < 6e6


def test_the_settings_under_the_cascade_are_those_that_the_selection_points_choose() -> None:
    sweep = load_sweep("cifar10/frontier")
    own = {
        (name, entry.method.name, parameters(json.dumps(dict(sorted(entry.method.values.items())))))
        for entry in sweep.defenses
        for name in entry.classifiers or ("mixup", "interpolated_at")
    }
    chosen = pd.read_csv(cifar10.PUBLISHED / "studies/cifar10_fig3b/figures/frontier_table.csv")
    rows = chosen[~chosen["defense"].isin(["none", "mi_pl"])]
    told = set(zip(rows["classifier"], rows["defense"], rows["parameters"], strict=True))
    assert told == {entry for entry in own if entry[1] != "none"}
