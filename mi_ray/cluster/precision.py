"""`precision: auto`, decided for all classifiers of a study at once, as Ray tasks."""

import ray

from mi_ray.cluster.session import Session
from mi_ray.cluster.worker import decide_precision, engine_of
from mi_ray.plan.work import ClassifierWork
from mi_ray.progress import stage
from mi_ray.study.precision import decision_path, decisions


def decide(session: Session) -> None:
    """Have the precision of each classifier decided where the sweep says `auto`, once, and keep it in the store."""
    known = decisions(session.store, session.study)
    failed = session.outcome.failures
    todo = [work for work in session.planner.classifiers if work.key not in known and work.key not in failed]
    if session.sweep.precision != "auto" or not todo:
        return
    size = session.sweep.resources.block
    with (
        session.outcome.timed("precision"),
        stage("precision: auto", len(todo), "classifiers", session.console) as shown,
    ):
        session.connect(size.cpus)
        options = {"num_cpus": size.cpus, "num_gpus": size.gpus}
        given = ([session.data()], session.sweep.plugins, engine_of(size))
        running = {
            decide_precision.options(**options, name=f"precision of {work.entry.name}").remote(*given, work.key): work
            for work in todo
        }
        while running:
            done, _ = ray.wait(list(running), timeout=1.0)
            for task in done:
                _take(session, running.pop(task), task)
            shown.advance(len(done))
    session.take_up(session.study.decided(decisions(session.store, session.study)))


def _take(session: Session, work: ClassifierWork, task: ray.ObjectRef) -> None:
    """Store the decision for a classifier and say it, or note why there is none."""
    try:
        found = ray.get(task)
    except ray.exceptions.RayError as error:
        session.fail(work.key, f"deciding the precision of {work.entry.name}", error)
        return
    session.store.write_json(decision_path(session.study, work.key), found)
    session.tell(f"{work.entry.name}: {found['decision']} ({found['reason']})")
