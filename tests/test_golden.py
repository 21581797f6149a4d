"""A change that should not change results must not: keys and rows of the golden studies, and keys of every packaged sweep."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.golden import FILE, ROWS, STUDIES, SWEEPS, keys, processor, study, sweep, trainings

KNOWN: dict[str, Any] = json.loads(FILE.read_text())


# What the released code does otherwise is held by keys, by the tests of each option and, at length, by its rows.
LONG = ("golden-presets",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in STUDIES]
)
def test_a_golden_study_has_the_keys_and_on_the_same_kind_of_processor_the_rows_that_it_had(
    name: str, tmp_path: Path
) -> None:
    rows = KNOWN["rows"].get(processor(), {}).get(name)
    if rows is None:
        assert keys(name, STUDIES[name]).items() <= KNOWN[name].items()
        pytest.skip(f"no rows are known of this kind of processor, {processor()}: the keys alone are held")
    found = study(name, STUDIES[name], tmp_path / "store")
    assert {key: value for key, value in found.items() if key not in ROWS} == KNOWN[name]
    assert {key: found[key] for key in ROWS} == rows


def test_classifiers_of_every_architecture_and_objective_have_the_keys_that_they_had() -> None:
    assert trainings() == KNOWN["trainings"]


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_packaged_sweep_has_the_keys_that_it_had(file: Path) -> None:
    assert sweep(file) == KNOWN["sweeps"][file.stem]
