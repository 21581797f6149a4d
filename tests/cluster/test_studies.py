"""Studies under real Ray, through the real command line: killed, resumed, extended, searched, checked, failing.

Starting Ray takes longer than most of these studies: what is not stopped in the middle shares one Ray.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers.commands import TINY, assert_same_rows, command, console, rows

import mi_ray
from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store
from mi_ray.store.files import UnfinishedStudyWarning
from mi_ray.store.manifest import unreferenced

# Several times what they take on two idle cores: other tests run beside them.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def counted(folder: Path, study: str = "tiny", way: str = "forward") -> dict[str, int]:
    """Passes that the last run counted, by stage."""
    manifest = Store(folder / "results").read_json(f"studies/{study}/manifest.json")
    passes: dict[str, int] = manifest["last_run"]["counted_passes"]
    return {name: number for name, number in passes.items() if name.endswith(way)}


def test_a_study_leaves_every_cell_of_its_grid_with_a_row_for_each_point(tiny: Path) -> None:
    cells, records = mi_ray.read_cells(tiny / "results", study="tiny"), rows(tiny)
    settings = 1 + (2 + 1 + 2 * 2) * 2  # none, and each setting at both N
    inputs = 1 + 2 * 2  # clean, and both goals at both stops
    assert len(cells) == settings * (inputs + 1)  # and the worst case of each setting
    assert (cells["state"] == "done").all()
    assert len(records) == len(cells) * 120
    assert not records.duplicated(["cell", "point"]).any()
    assert set(cells["points"]) == {80}
    reported = records[~records["selection"]].groupby("cell")
    mean = reported["correct_draws"].sum() / reported["draws"].sum()
    assert mean.loc[cells["cell"]].to_numpy() == pytest.approx(cells["accuracy"].to_numpy())


def test_a_study_leaves_its_figures_tables_and_provenance(tiny: Path) -> None:
    study = tiny / "results/studies/tiny"
    assert (study / "figures/fig3b.png").read_bytes().startswith(b"\x89PNG")
    assert (study / "figures/fig3b.pdf").read_bytes().startswith(b"%PDF")
    assert {p.name for p in (study / "figures").glob("frontier_table.*")} == {
        "frontier_table.md",
        "frontier_table.csv",
        "frontier_table.tex",
    }
    manifest = json.loads((study / "manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["provenance"]["versions"]["torch"]
    assert len(manifest["points"]["indices"]) == 120
    assert yaml.safe_load((study / "study.yaml").read_text())["options"]["pool_split"] == "train"
    assert not list((tiny / "results").rglob(".*")), "temporary files are left"
    assert not (tiny / "results-scratch").exists()


def test_two_workers_train_one_classifier(tiny: Path) -> None:
    (about,) = (tiny / "results/classifiers").glob("*/classifier.json")
    assert json.loads(about.read_text())["workers"] == 2
    losses = pd.read_parquet(about.parent / "training.parquet")["loss"].tolist()
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_counted_passes_are_the_planned_ones(tiny: Path) -> None:
    manifest = Store(tiny / "results").read_json("studies/tiny/manifest.json")
    for way in ("forward", "backward"):
        found = counted(tiny, way=way)
        planned = {name for name, passes in manifest["planned"].items() if passes and name.endswith(way)}
        assert found.keys() >= {name for name in planned if not name.startswith("naive")}
        for what, passes in found.items():
            assert passes == manifest["planned"].get(what, 0), what


@pytest.mark.long  # On Ray once more; what keeps them out is held by test_scheduling.py and test_installation.py.
def test_modules_that_lie_in_the_folder_are_run_neither_by_the_command_nor_by_its_workers(undisturbed: Path) -> None:
    assert not (undisturbed / "hostile").exists()
    assert not list(undisturbed.rglob("__pycache__"))


@pytest.mark.skipif((os.cpu_count() or 1) > 6, reason="the six settings are fewer than places: they run as blocks")
def test_trials_begin_together_one_on_each_core(tiny: Path) -> None:
    events = [json.loads(line) for line in (tiny / "run.jsonl").read_text().splitlines()]
    happened = [each["event"] for each in events if each["event"].startswith("trial ") and each["study"] == "tiny"]
    settings = happened.count("trial done")
    assert happened[: happened.index("trial step")].count("trial begun") == min(settings, os.cpu_count() or 1)


def test_a_finished_study_is_recognised_without_importing_torch_or_ray(tiny: Path) -> None:
    program = (
        "import sys; from mi_ray.cli import main\n"
        "try: main()\n"
        "finally: print('heavy:', [m for m in ('torch', 'ray') if m in sys.modules])"
    )
    arguments = command(tiny, TINY)[3:]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tiny)
    assert "finished already, nothing to compute" in done.stdout
    assert "heavy: []" in done.stdout, done.stdout + done.stderr


WIDER = {  # one value more
    **TINY,
    "name": "wider",
    "figures": [],
    "defenses": [{"gaussian_noise": {"sigma": [0.1, 0.15, 0.2]}}, *TINY["defenses"][1:]],
}
POISONED = {  # what is stored already, and a defense that always fails
    **TINY,
    "name": "poisoned",
    "plugins": ["poison"],
    "figures": [],
    "defenses": [*TINY["defenses"], "poison"],
}
SEARCH = {  # every setting that it can propose needs the same two components
    **TINY,
    "name": "search",
    "figures": [],
    "executions": 5,
    "draws": 1,
    "points": {"count": 50, "selection": 20},
    "defenses": [{"mi_combined": {"lam_pl": 0.45, "lam_ol": 0.55, "threshold": [0.1, 0.2, 0.3, 0.4]}}],
    "search": {"optuna": {"sampler": "tpe", "trials": 5, "round": 3}},
}
AGAIN = {**SEARCH, "name": "again", "resources": {**TINY["resources"], "trials_at_once": 1}}
EOT = {
    "eot_pgd": {"steps": 2, "step_size": 0.02, "eot": 2, "scoring_draws": 1},
    "epsilon": 0.05,
    "knowledge": "adaptive",
}
UNTARGETED = TINY["attacks"][0] | {"goal": "untargeted"}
ADAPTIVE_SEARCH = {
    **SEARCH,
    "name": "adaptive",
    "attacks": [UNTARGETED, EOT],
    "checks": {"points": 1},
    "batch": 10,
    "points": {"count": 20, "selection": 10},
    "search": {"optuna": {"sampler": "nsgaii", "trials": 2, "round": 2}},
}
CHECKED = {
    **TINY,
    "name": "checked",
    "points": {"count": 40},
    "batch": 20,
    "executions": 3,
    "attacks": [UNTARGETED, EOT],
    "defenses": [{"mi_ol": 0.5}],
    "checks": {"points": 20},
    "variants": {"guessed": {"attack_labels": "predicted"}},
}
TRAINED = TINY["classifiers"][0]["training"]
POISON = """
from dataclasses import dataclass
from mi_ray.defenses import DEFENSES, RandomTransform

@DEFENSES.register
@dataclass(frozen=True)
class Poison(RandomTransform):
    'Fails on every block, and not on the few images that are tried before any work.'
    name = 'poison'
    def transform(self, x, draws, predicted, pool):
        if len(x) > 4:
            raise RuntimeError('the poison works')
        return x[None].expand(draws.executions, *x.shape)
    @classmethod
    def identity(cls):
        return {}
"""


@dataclass(frozen=True)
class Several:
    """What one command left of several studies."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    def cells(self, study: str) -> pd.DataFrame:
        """A study's cells."""
        return mi_ray.read_cells(self.folder / "results", study=study)


def ran(folder: Path, studies: list[dict[str, Any]], *options: str) -> Several:
    """Studies run by one command with one Ray; their plugin lies beside the sweep files, and the command is run elsewhere."""
    sweeps = folder / "sweeps"
    sweeps.mkdir()
    (sweeps / "poison.py").write_text(POISON)
    for named in ("signal", "queue", "torch"):  # What is installed comes first, in workers too.
        (sweeps / f"{named}.py").write_text("raise RuntimeError('a file beside the sweep, in the place of a module')")
    arguments = [*command(sweeps, *studies)[3:-1], "results", "--log", "run.jsonl", *options]
    return Several(folder, console(folder, *arguments))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Several:
    """A study, the same with more settings, and others beside them that take from the store what is there; read only."""
    return ran(tmp_path_factory.mktemp("several"), [TINY, POISONED, SEARCH, CHECKED])


@pytest.fixture(scope="module")
def tiny(several: Several) -> Path:
    """The folder of the first of them, which computed all of its own."""
    return several.folder


def test_processes_of_blocks_are_handed_on_from_stage_to_stage_and_from_study_to_study(several: Several) -> None:
    events = [json.loads(line) for line in (several.folder / "run.jsonl").read_text().splitlines()]
    blocks = {(each["study"], each["pid"]) for each in events if each["event"] == "block begun"}
    used = {study: {pid for of, pid in blocks if of == study} for study, _ in blocks}
    assert used.keys() == {"tiny", "poisoned", "checked"}
    assert used["tiny"] & used["poisoned"] & used["checked"]


@pytest.mark.long  # On Ray once more: that what is stored is not computed again is held by test_workbench.py.
def test_one_more_value_computes_only_its_own_cells_and_changes_no_row(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "results", tmp_path / "results")
    wider = ran(tmp_path, [WIDER])
    assert wider.done.returncode == 0, wider.done.stdout + wider.done.stderr
    # one new setting: 5 inputs x 150 stored points (whole batches) x 2 draws x 10 executions
    assert counted(tmp_path, "wider") == {"evaluation_forward": 5 * 150 * 2 * 10}
    new = rows(tmp_path, "wider")
    old = new[~new["defense_params"].str.contains("0.15")].reset_index(drop=True)
    assert len(old) < len(new)
    assert_same_rows(old.assign(study="tiny"), rows(undisturbed))


def tried(of: Several, study: str, trials: int) -> set[frozenset[str]]:
    """The sets of attacks on the settings that a search tried, all done; at most so many."""
    cells = of.cells(study)
    assert (cells["state"] == "done").all(), of.done.stdout + of.done.stderr
    assert 1 < cells["defense_params"].nunique() <= trials + 1
    settings = cells[cells["defense"] != "none"].groupby(["defense", "defense_params"])
    return {frozenset(found["attack"]) for _, found in settings}


def test_a_search_tries_its_settings_on_all_inputs(several: Several) -> None:
    assert tried(several, "search", 5) == {frozenset({"none", "pgd", "worst_case"})}


def test_no_trial_of_a_search_is_lost_where_a_plugin_of_another_study_lies_beside_the_sweeps(several: Several) -> None:
    told = [json.loads(line) for line in (several.folder / "run.jsonl").read_text().splitlines()]
    of_search = [each["event"] for each in told if each.get("study") == "search"]
    assert "study done" in of_search
    assert not {"trial lost", "trial failed"} & set(of_search)


@pytest.mark.long  # On Ray once more: that a search proposes the same again is held by test_search.py.
def test_a_search_repeats_its_settings_from_what_is_stored(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "results", tmp_path / "results")
    both = ran(tmp_path, [SEARCH, AGAIN])
    assert counted(both.folder, "again")["evaluation_forward"] == 0
    assert sorted(both.cells("search")["cell"]) == sorted(both.cells("again")["cell"])


def test_trials_at_once_that_need_the_same_blocks_wait_for_one_computation_of_them(several: Several) -> None:
    # 2 components x 5 inputs x 50 points x 1 draw x 5 executions, by whichever of the trials came first
    assert counted(several.folder, "search")["evaluation_forward"] == 2 * 5 * 50 * 5


@pytest.mark.long
def test_a_search_attacks_each_setting_that_it_finds_and_checks_it(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "results", tmp_path / "results")
    found = ran(tmp_path, [ADAPTIVE_SEARCH])
    assert tried(found, "adaptive", 2) == {frozenset({"none", "pgd", "eot_pgd", "worst_case"})}
    cells = found.cells("adaptive")
    adaptive = cells[cells["attack"] == "eot_pgd"]
    assert len(adaptive) == cells[cells["defense"] != "none"]["defense_params"].nunique()
    assert adaptive["work"].map(lambda text: json.loads(text)["adversarial"]).nunique() == len(adaptive)
    checks = [json.loads(text) for text in adaptive["checks"]]
    assert all(each["more_eot"]["state"] != "not run" for each in checks)
    assert all(each["oblivious_not_stronger"]["state"] != "not run" for each in checks)


def test_checks_run_on_their_points_alone_and_judge_every_cell(several: Several) -> None:
    store, cells = Store(several.folder / "results"), several.cells("checked")
    assert (cells["state"] == "done").all(), several.done.stdout + several.done.stderr
    attacked = cells[cells["attack"] != "none"]
    adaptive = json.loads(attacked[attacked["attack"] == "eot_pgd"]["checks"].iloc[0])
    silent = {name for name, found in adaptive.items() if found["state"] == "not run"}
    assert silent <= {
        "reference",
        "headway",
        "budget",
        "pushed_back",
        "gradients_not_zero",
        "peers",
        "black_box_not_stronger",
    }
    assert all("not run yet" not in found["why"] for found in adaptive.values())
    manifest = store.read_json("studies/checked/manifest.json")
    attacks = manifest["keys"]["adversarial"]
    study = {json.loads(text).get("adversarial") for text in cells["work"]} - {None}
    beyond = {key for key in attacks if any(block.start >= 20 for block in store.blocks("adversarial", key))}
    assert beyond == study < set(attacks)
    assert manifest["checked_points"] == 20


def test_passes_of_a_study_with_checks_are_the_planned_ones(several: Several) -> None:
    manifest = Store(several.folder / "results").read_json("studies/checked/manifest.json")
    done = counted(several.folder, "checked")
    assert done == {name: manifest["planned"][name] for name in done}
    assert done.keys() == {"attack_forward", "evaluation_forward", "checks_forward"}


def test_the_cells_and_their_figures_are_there_before_the_checks(several: Several) -> None:
    lines = several.done.stdout.splitlines()
    told = next(at for at, line in enumerate(lines) if line.startswith("checked: the cells and their first frontier"))
    stages = [line.split(":")[0] for line in lines[:told]]
    assert "attack" in stages
    later = [line for line in lines[told:] if line.startswith("checks: ")]
    assert any(line.startswith("checks: attacks") for line in later)
    assert not any(line.startswith("checks: ") for line in lines[:told])


LATE = {  # one classifier is in the store, and the other takes long enough for all of the first one's study
    **CHECKED,
    "name": "late",
    "classifiers": [
        *TINY["classifiers"],
        {**TINY["classifiers"][0], "name": "late", "workers": 1, "training": {**TRAINED, "epochs": 40}},
    ],
}


@pytest.mark.long  # On Ray twice more: what begins when, and where there is room, is held by test_scheduling.py.
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a training leaves no room for blocks on one core")
def test_a_classifier_that_is_there_is_attacked_and_evaluated_while_another_one_trains(
    undisturbed: Path, tmp_path: Path
) -> None:
    for name in ("beside", "after"):
        (tmp_path / name).mkdir()
        shutil.copytree(undisturbed / "results", tmp_path / name / "results")
    # A callback listens, to which settings that ran as blocks are reported.
    beside = ran(tmp_path / "beside", [LATE], "--callback", "ray.tune:Callback")
    assert beside.done.returncode == 0, beside.done.stdout + beside.done.stderr
    log = [json.loads(line) for line in (tmp_path / "beside/run.jsonl").read_text().splitlines()]
    trained = next(at for at, each in enumerate(log) if each["event"] == "training done")
    early = [each for each in log[:trained] if each["event"] == "block done"]
    assert {each["kind"] for each in early} >= {"adversarial", "outputs"}
    settings = beside.cells("late").groupby("classifier")["defense_params"].nunique()
    assert sum(each["event"] == "trial done" for each in log) == settings.sum() - 2, "a setting was not reported"

    assert console(tmp_path / "after", *command(tmp_path, LATE, verb="train")[3:-1], "results").returncode == 0
    after = ran(tmp_path / "after", [LATE])
    assert after.done.returncode == 0, after.done.stdout + after.done.stderr
    assert_same_rows(rows(beside.folder, "late"), rows(after.folder, "late"))
    judged = ["cell", "verdict", "checks", "accuracy"]
    pd.testing.assert_frame_equal(beside.cells("late")[judged], after.cells("late")[judged])


def test_cells_of_a_variant_stand_beside_those_of_the_study(several: Several) -> None:
    cells = several.cells("checked")
    assert {tuple(found) for found in cells[cells["attack"] == "none"]["variants"]} == {("", "guessed")}
    attacked = cells[cells["attack"] != "none"]
    assert {tuple(found) for found in attacked["variants"]} == {("",), ("guessed",)}
    pgd = attacked[attacked["attack"] == "pgd"]
    labels = pgd["attack_params"].map(lambda text: json.loads(text)["labels"])
    assert [found[0] == "guessed" for found in pgd["variants"]] == list(labels == "predicted")


def test_a_defense_that_always_fails_leaves_the_others_done_and_its_cause_in_the_cells(several: Several) -> None:
    assert several.done.returncode == 1
    assert "the poison works" in several.done.stderr
    assert counted(several.folder, "poisoned") == {"evaluation_forward": 0}
    cells = several.cells("poisoned")
    bad = cells[cells["defense"] == "poison"]
    assert set(bad["state"]) == {"failed"}
    assert bad["cause"].str.contains("the poison works").all()
    assert set(cells[cells["defense"] != "poison"]["state"]) == {"done"}
    with pytest.warns(UnfinishedStudyWarning, match="12 failed"):
        stand = rows(several.folder, "poisoned")
    assert_same_rows(stand.assign(study="tiny"), rows(several.folder))


def test_a_store_of_several_studies_is_sound_and_holds_nothing_that_none_refers_to(several: Several) -> None:
    store = Store(several.folder / "results")
    assert check_store(store)[0] == []
    assert unreferenced(store) == []


@pytest.mark.long
@pytest.mark.timeout(560)
def test_smoke_variants_with_counterparts_and_with_adaptive_attacks_run(tmp_path: Path) -> None:
    """The others differ in size alone; `make smoke` runs all of them."""
    names = ["cifar10_small", "fig2", "fig5"]
    program = [sys.executable, "-m", "mi_ray.cli", "sweep", "--smoke", *names, "--out", "results"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        cells = mi_ray.read_cells(tmp_path / "results", study=f"{name}-smoke")
        assert len(cells) > 1
        assert (cells["state"] == "done").all()
