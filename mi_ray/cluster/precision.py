"""`precision: auto`, decided for all classifiers of a study at once, in pieces that are Ray tasks."""

from collections.abc import Sequence

import ray

from mi_ray.cluster.session import Session
from mi_ray.cluster.worker import compare_precisions, limits_of
from mi_ray.own_code import own_modules
from mi_ray.plan.work import ClassifierWork
from mi_ray.progress import Stage, stage
from mi_ray.study.precision import EPSILONS, PIECES, Comparison, checked_points, decision, decision_path, decisions

Made = list[Comparison] | None  # Of a piece; None from a device without bfloat16.


def decide(session: Session) -> None:
    """Have the precision of each classifier decided where the sweep says `auto`, once, and keep it in the store.

    Where the check would take more than a tenth of the study's passes, all of them are fp32 already.
    """
    known = {*decisions(session.store, session.study), *session.outcome.failures}
    todo = [work for work in session.planner.classifiers if work.key not in known]
    if session.sweep.precision == "auto" and todo:
        with session.outcome.timed("precision"):
            session.connect(session.sweep.resources.block.cpus)
            points = checked_points(session.bench) * (len(EPSILONS) + len(PIECES)) * len(todo)
            with stage("precision: auto", points, "points", session.console, "starting workers") as shown:
                _compare_all(session, todo, shown)
    know(session)


def know(session: Session) -> None:
    """Go on with what `precision: auto` has decided, now or in an earlier run: keys depend on it."""
    if session.sweep.precision == "auto":
        session.take_up(session.study.decided(decisions(session.store, session.study)))


def _compare_all(session: Session, todo: Sequence[ClassifierWork], shown: Stage) -> None:
    """Run every piece of every classifier, and settle a classifier when the last one of its pieces has ended."""
    size = session.sweep.resources.block
    running = dict[ray.ObjectRef, ClassifierWork]()
    for work in todo:
        options = {"num_cpus": size.cpus, "num_gpus": size.gpus, "name": f"precision of {work.entry.name}"}
        for epsilon in PIECES:
            given = ([session.data()], own_modules(session.sweep.plugins), limits_of(size), work.key, epsilon)
            running[compare_precisions.options(**options).remote(*given)] = work
    made: dict[str, list[Made]] = {work.key: [] for work in todo}
    while running:
        ended, _ = ray.wait(list(running), timeout=1.0)
        shown.advance(0)  # Ctrl-C is looked at also while nothing ends.
        for task in ended:
            work = running.pop(task)
            try:
                made[work.key].append(ray.get(task))
            except ray.exceptions.RayError as error:
                session.fail(work.key, f"deciding the precision of {work.entry.name}", error)
                continue
            shown.advance(checked_points(session.bench) * len(made[work.key][-1] or ()))
            if len(made[work.key]) == len(PIECES):
                _settle(session, work, made[work.key])


def _settle(session: Session, work: ClassifierWork, made: Sequence[Made]) -> None:
    """Store what the pieces of a classifier say together, and print it."""
    found = [each for piece in made for each in piece or ()]
    able = None not in made
    decided = decision(session.bench.data.device, checked_points(session.bench), found if able else None)
    if "factory" in work.description:
        # The form of a person's own network that was compared.
        decided["folded"] = list(session.bench.data.folded[work.key])
    session.store.write_json(decision_path(session.study, work.key), decided)
    session.tell(f"{work.entry.name}: {decided['decision']} ({decided['reason']})")
