"""A study from end to end, one stage after another: train, attack, evaluate, write the cells, check, write them again."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from mi_ray.attacks import ATTACKS
from mi_ray.cluster import precision
from mi_ray.cluster.blocks import Beside, Steps, compute_missing, computing, finish
from mi_ray.cluster.session import Outcome, Session
from mi_ray.cluster.training import train
from mi_ray.cluster.tuning import evaluate_defenses, evaluating
from mi_ray.events import about, event
from mi_ray.plan.work import Plan, Until
from mi_ray.progress import stage
from mi_ray.store.files import remove_temporary_files
from mi_ray.store.read import write_certificates
from mi_ray.study.certificates import certified_rows
from mi_ray.study.folder import mark, write_study
from mi_ray.study.rows import DerivedRows, mark_selected, write_records
from mi_ray.study.verdicts import MORE_DRAWS

TOLD = ("cell", "state", "cause", "classifier", "attack", "defense", "defense_params", "executions", "work")


def run(session: Session, until: Until) -> Outcome:
    """Do all that is missing of a study, up to and including the stage `until`; returns what was done."""
    began = time.monotonic()  # A clock that is set meanwhile changes no length of a run.
    with about(study=session.sweep.name):
        event("study begun", until=until)
        try:
            _stages(session, until)
        finally:
            session.callbacks.close()
        remove_temporary_files(session.store)
        seconds = round(sum(session.outcome.seconds.values()), 3)
        event("study done", failed=len(session.outcome.failures), seconds=seconds)
        _tell_of_time(session, time.monotonic() - began)
    return session.outcome


def _tell_of_time(session: Session, seconds: float) -> None:
    """Say where the run's time went: how many seconds of each place, such as a core, were passes, and what the others were."""
    spent, places = session.outcome.spent, session.places()
    told = {name: round(value, 3) for name, value in spent.seconds.items()}
    event("time spent", wall=round(seconds, 3), places=places, **told)
    session.tell(f"{session.sweep.name}: {spent.line(seconds, places)}")


def _stages(session: Session, until: Until) -> None:
    precision.know(session)
    plan = session.study.plan()
    mark(session.store, session.study, plan, "running")
    for line in session.study.kept_as_they_are():
        session.tell(line)
    # What `precision: auto` decides is decided for all classifiers together, and nothing has a key before.
    early = until != "train" and session.sweep.precision != "auto"
    train(session, partial(_of_trained, session, until) if early else None)
    # What failed beside trainings is tried again, since all of the cluster is there for it now.
    failures = session.outcome.failures
    if passing := [key for key, failure in failures.items() if not failure.training]:
        for key in passing:
            del failures[key]
        session.take_up(session.study)
    if until == "train":
        mark(session.store, session.study, plan, "trained")
        return
    precision.decide(session)
    plan = session.study.plan()  # Its keys may depend on the precision.
    mark(session.store, session.study, plan, "running")
    finish(attacking(session, plan))
    if until == "attack":
        mark(session.store, session.study, plan, "attacked")
        return
    plan = evaluate_defenses(session, plan)
    with closing(checking(session, plan)) as checks:
        next(checks, None)  # Workers have their first blocks while this process derives rows and draws.
        records = derive_records(session, plan)
        if plan.check_attacks():
            judge_and_write(session, plan, records, checking=True)
            finish(checks)
            take_more_draws(session, records)
    certify(session, plan)
    judge_and_write(session, plan, records)


def _of_trained(session: Session, until: Until, beside: Beside) -> Steps:
    """Go on with the classifiers that are trained, while others still are, as far as nothing of those is needed."""
    plan = session.study.plan()
    yield from attacking(session, plan, beside)
    if until == "sweep" and session.sweep.search is None:
        yield from evaluating(session, plan, beside)
        if not any(work.given for work in plan.attacks):
            # An attack of a check may go on from one of the study's, on which another classifier's images may stand.
            yield from checking(session, plan, beside)


def attacking(session: Session, plan: Plan, beside: Beside | None = None) -> Steps:
    """Craft the study's adversarial examples, and pass them through F.

    A few trajectories are computed for their checks as well (see `Plan.attacks_at_once`); all else of the checks waits,
    so that the first frontier is there early. A classifier that has no answer to the clean points is given up first, with
    everything on it.
    """
    of_f = [work for work in plan.outputs if work.component is None]
    clean = [work for work in of_f if work.inputs.attack is None]
    yield from computing(session, "outputs of F", "evaluation", clean, beside=beside)
    failed = session.outcome.failures
    failed |= {work.classifier: failed[work.key] for work in clean if work.key in failed}
    at_once = plan.attacks_at_once(lambda method: ATTACKS[method].goes_on)
    for points, some in plan.by_points(at_once):
        yield from computing(session, "attacks that checks share", "checks", some, points, beside=beside)
    for begins in (False, True):
        some = [work for work in plan.attacks if bool(work.given) == begins]
        yield from computing(session, "attack", "attack", some, beside=beside)
    yield from computing(session, "outputs of F", "evaluation", of_f, beside=beside)


def checking(session: Session, plan: Plan, beside: Beside | None = None) -> Steps:
    """Craft the checks' adversarial examples and evaluate them, first with F and then with what takes ŷ from it."""
    if not plan.check_attacks():
        return
    for begins in (False, True):
        these = [work for work in plan.check_attacks() if bool(work.given) == begins]
        for points, attacks in plan.by_points(these):
            yield from computing(session, "checks: attacks", "checks", attacks, points, beside=beside)
    outputs = plan.by_points(plan.check_outputs())
    for of_f in (True, False):
        for points, works in outputs:
            some = [work for work in works if (work.component is None) == of_f]
            yield from computing(session, "checks: outputs", "checks", some, points, beside=beside)


def take_more_draws(session: Session, records: DerivedRows) -> None:
    """Where few draws leave a check behind a random defense open, more are taken before it is called failed or passed."""
    for _ in MORE_DRAWS:
        for points, works in records.open_draws().items():
            compute_missing(session, "checks: more draws", "checks", works, points)


def certify(session: Session, plan: Plan) -> None:
    """Count the votes that are not stored of what the study certifies."""
    compute_missing(session, "certificates", "certification", plan.votes())


def derive_records(session: Session, plan: Plan) -> DerivedRows:
    """Derive the records of every cell that are not stored, and read what all of them say."""
    points = (session.sweep.points.selection, session.sweep.points.count)
    with session.outcome.timed("records"), stage("records", len(plan.cells), "cells", session.console) as shown:
        return write_records(session.bench.results, plan, points, session.cause_of, shown.advance)


def _tell_of_chance(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Say which classifiers that were not trained here answer clean images near chance, as one without its weights does."""
    given = {work.key: work.entry.name for work in session.planner.classifiers if work.objective is None}
    for row in rows:
        bare = (row["attack"], row["defense"], row["state"]) == ("none", "none", "done")
        if bare and row["classifier_key"] in given:
            remedy = "are these its weights, and its classes in the order of the dataset's?"
            session.tell_near_chance(f"{given[row['classifier_key']]} has", row["accuracy"], remedy)


def judge_and_write(session: Session, plan: Plan, records: DerivedRows, *, checking: bool = False) -> None:
    """Judge every cell, write what the study says about them, and have the figures drawn.

    checking: whether the checks are still to be run; the verdicts of cells that need them are then "not run".
    """
    outcome = session.outcome
    with outcome.timed("records"):
        rows = records.judged(checked=not checking)
        mark_selected(rows)
    for row in rows:
        event("cell", **{name: row[name] for name in TOLD if row.get(name, "") != ""})
    outcome.cells = rows
    if not checking:
        points = (session.sweep.points.selection, session.sweep.points.count)
        certified, outcome.certified = certified_rows(
            session.bench.results, plan.certificates, points, session.cause_of_certificate
        )
        write_certificates(session.store, session.sweep.name, certified, outcome.certified)
    done = {"counted_passes": outcome.counted, "seconds": outcome.seconds}
    failures = {key: str(failure) for key, failure in outcome.failures.items()}
    write_study(
        session.store,
        session.study,
        plan,
        rows,
        {"last_run": done},
        checking=checking,
        certified=outcome.certified,
        failures=failures,
    )
    name = session.sweep.name
    if any(row["state"] == "done" for row in rows):
        session.cells_written(session.store, name)
    if not checking:
        _tell_of_chance(session, rows)
    if checking:
        session.tell(
            f"{name}: the cells and their first frontier are in {session.store.uri}/studies/{name}; checks follow"
        )
