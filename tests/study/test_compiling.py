"""`compile: auto` chooses by planned passes and the machine's means, and its keys say what it chose."""

from pathlib import Path
from typing import Any

import pytest
from helpers.sweeps import document

from mi_ray.config import Sweep
from mi_ray.store.blocks import Store
from mi_ray.study import compiling
from mi_ray.study.prepare import Study, prepare
from mi_ray.study.workbench import Workbench

CLASSIFIER = {"name": "f", "architecture": {"cnn_small": {"width": 4}}, "training": {"epochs": 1, "batch_size": 50}}


def study(**changes: Any) -> Study:
    """A study of an oblivious attack, an adaptive one, and a defense."""
    attacks = [
        {"pgd": {"steps": [1]}, "epsilon": 0.02},
        {"eot_pgd": {"steps": [1]}, "epsilon": 0.02, "knowledge": "adaptive"},
    ]
    own = {"points": {"count": 20}, "batch": 10, "classifiers": [CLASSIFIER], "attacks": attacks, "executions": [5]}
    return prepare(Sweep.model_validate(document(**{**own, **changes})))


def keys(of: Study) -> dict[str, set[str]]:
    """The keys of each kind of work."""
    plan = of.plan()
    return {
        "classifiers": {work.key for work in plan.classifiers},
        "attacks": {work.key for work in plan.attacks},
        "F on clean points": {w.key for w in plan.outputs if w.component is None and w.inputs.attack is None},
        "defenses": {work.key for work in plan.outputs if work.component is not None},
        "cells": {cell.key for cell in plan.cells},
    }


@pytest.fixture
def paying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs pay from the first pass on, on a machine with a compiler."""
    monkeypatch.setattr(compiling, "LEAST", {"fp32": 0.0, "bf16": 0.0})
    monkeypatch.setattr(compiling, "compiler", lambda: "/usr/bin/g++")


def test_what_is_planned_to_be_little_is_not_compiled_and_shares_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "compiler", lambda: "/usr/bin/g++")
    found = study(compile="auto")
    (note,) = found.notes
    assert note.startswith("compile: auto: f: not compiled, since ") and note.endswith("graphs pay from 3e+13 on")
    assert keys(found) == keys(study())


@pytest.mark.usefixtures("paying")
def test_without_a_compiler_nothing_is_compiled_and_the_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "compiler", lambda: None)
    found = study(compile="auto")
    assert found.notes == ("compile: auto: f: not compiled, since this machine has no C++ compiler (g++)",)
    assert keys(found) == keys(study())


@pytest.mark.usefixtures("paying")
def test_what_graphs_compute_has_keys_of_its_own_and_what_they_do_not_shares_them() -> None:
    """F's own answers are in batches of one pass a point, for which there is no graph."""
    found = study(compile="auto")
    told = ("compile: auto: f: compiled graphs, which each machine makes once",)
    assert found.notes == told
    assert study(compile="auto", resources={"block": {"cpus": 2}}).notes == (*told, compiling.ONE_AT_A_TIME)
    eager, compiled = keys(study()), keys(found)
    assert {kind for kind in eager if eager[kind] == compiled[kind]} == {"classifiers", "F on clean points"}
    assert all(eager[kind].isdisjoint(compiled[kind]) for kind in ("attacks", "defenses"))
    assert keys(study(compile="default"))["attacks"].isdisjoint(compiled["attacks"])


@pytest.mark.usefixtures("paying")
def test_a_workbench_has_graphs_of_the_sizes_of_its_batches_in_the_precision_of_the_study(tmp_path: Path) -> None:
    import torch

    from mi_ray.classifiers import build_classifier, weights_bytes

    for precision in ("fp32", "bf16"):
        found = study(compile="auto", precision=precision)
        (work,) = found.planner.classifiers
        torch.manual_seed(0)
        content = weights_bytes(build_classifier(work.description))
        store = Store(tmp_path / precision, create=True)
        bench = Workbench(found.data(store.address, {work.key: (work.description, content)}))
        graphs = bench.classifier(work.key, precision).graphs
        assert graphs is not None
        assert graphs._sizes == {False: [50], True: [10, 50]}
        if precision == "bf16":
            assert bench.classifier(work.key, "fp32").graphs is None


def test_multiplications_of_a_convolution_are_counted_once() -> None:
    """3x5x5 inputs an output, 16x16 places, 4 channels: and so on for the smaller layers behind it."""
    (work,) = study().planner.classifiers
    first, second, third, head = 16 * 16 * 4 * 75, 8 * 8 * 8 * 36, 4 * 4 * 16 * 72, 16 * 10
    assert compiling.multiply_adds(work, (32, 32)) == first + second + third + head
