"""The stages of a study: what begins when, what is tried again, what a failed stage leaves, and what is known before."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.studies import compute, tiny
from rich.console import Console

import mi_ray.study.precision
from mi_ray.cluster import precision, runner
from mi_ray.cluster.session import Failure, Outcome, Session
from mi_ray.study.precision import decision_path

STAGES = ("mark", "train", "attacking", "derive_records", "judge_and_write", "take_more_draws", "certify")


class Stages:
    """The stages of `runner`, each of which only notes that it happened, but for those that a test puts in their place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **instead: Callable[..., object]) -> None:
        self.happened: list[str] = []
        plan = SimpleNamespace(check_attacks=lambda: (object(),))
        for name in STAGES:
            monkeypatch.setattr(runner, name, instead.get(name, self.noting(name)))
        monkeypatch.setattr(runner, "evaluate_defenses", lambda session, plan: plan)
        monkeypatch.setattr(runner.precision, "decide", lambda session: None)
        monkeypatch.setattr(runner, "checking", self.checking)
        study = SimpleNamespace(plan=lambda: plan, kept_as_they_are=lambda: ())
        sweep = SimpleNamespace(precision="fp32", search="grid")
        self.session: Any = SimpleNamespace(
            study=study, store=None, sweep=sweep, outcome=Outcome(), take_up=self.noting("take_up")
        )

    def noting(self, name: str) -> Callable[..., object]:
        """A stage that notes its name, and whether it is of the first frontier."""

        def note(*args: object, **options: object) -> object:
            self.happened.append(f"{name}{' early' if options.get('checking') else ''}")
            return ()

        return note

    def checking(self, *args: object) -> Iterator[None]:
        """Checks of one step."""
        self.happened.append("checks begin")
        try:
            yield
            self.happened.append("checks end")
        finally:
            self.happened.append("checks are closed")

    def run(self) -> list[str]:
        """Run them all; what happened, in its order."""
        runner._stages(self.session, "sweep")
        return self.happened


def test_checks_have_begun_when_rows_are_derived_and_end_after_the_first_cells_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened = Stages(monkeypatch).run()
    assert happened[happened.index("attacking") + 1 :] == [
        *("checks begin", "derive_records", "judge_and_write early", "checks end"),
        *("checks are closed", "take_more_draws", "certify", "judge_and_write"),
    ]


def test_checks_that_have_begun_are_closed_where_rows_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left")

    stages = Stages(monkeypatch, derive_records=full)
    with pytest.raises(OSError, match="no space left") as kept:  # as a notebook keeps it
        stages.run()
    assert stages.happened[-2:] == ["checks begin", "checks are closed"], kept


def test_what_failed_beside_trainings_is_tried_again_and_a_training_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(session: Any, of_trained: object) -> None:
        session.outcome.failures |= {"a": Failure("attack on f", "no disk"), "g": Failure("training g", "NaN", True)}

    stages = Stages(monkeypatch, train=train)
    assert "take_up" in stages.run()
    assert set(stages.session.outcome.failures) == {"g"}
    assert "take_up" not in Stages(monkeypatch).run()


def test_a_classifier_that_has_failed_and_has_stored_results_fails_its_cells_alone_and_keeps_them(
    tmp_path: Path,
) -> None:
    found = tiny(tmp_path)
    compute(found)
    session = Session(found.study, found.store, None, Console(quiet=True))
    runner.derive_records(session, found.plan)
    before = sorted(found.store.files("records"))
    (classifier,) = (work.key for work in found.study.planner.classifiers)
    failed = Session(found.study, found.store, None, Console(quiet=True))
    failed.fail(classifier, "training f", RuntimeError("its worker died"), training=True)
    rows = runner.derive_records(failed, found.plan).judged()
    assert {(row["state"], row["cause"]) for row in rows} == {("failed", "training f: its worker died")}
    assert sorted(found.store.files("records")) == before


@pytest.mark.parametrize("pays", [False, True])
def test_a_run_is_in_the_precision_that_was_decided_though_nothing_is_left_to_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    if pays:
        monkeypatch.setattr(mi_ray.study.precision, "LARGEST_SHARE", float("inf"))
    found = tiny(tmp_path, precision="auto", defenses=[{"mi_ol": {"lam": 0.5}}])
    (classifier,) = (work.key for work in found.study.planner.classifiers)
    if pays:
        found.store.write_json(decision_path(found.study, classifier), {"decision": "fp32"})
    for know in (precision.know, precision.decide):
        session = Session(found.study, found.store, None, Console(quiet=True))
        assert session.planner.works.precision_of(classifier) == "bf16"  # as long as nobody has asked
        know(session)
        assert session.planner.works.precision_of(classifier) == "fp32"
        assert session.bench.data.precision == {classifier: "fp32"}
