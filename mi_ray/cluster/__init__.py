"""The only folder that imports Ray: training, blocks of points as tasks, defense settings as trials, and a study
from end to end."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal


def run_study(
    study: Any,
    store: Any,
    address: str | None,
    console: Any,
    until: Literal["train", "attack", "sweep"] = "sweep",
    watched: Mapping[str, Any] | None = None,
) -> Any:
    """Do all that is missing of a study (see `cluster.study.Runner`), on a cluster or on a local Ray (address None).

    Ray is started or joined when something has to be computed, and is left for the next study (see `one_ray`). It
    reads its environment when it is first imported, so that is set up here, before anything imports it.
    watched: see `cluster.watch.Watch`.
    """
    from mi_ray.cluster.connect import check_address, prepare_environment

    check_address(address)
    prepare_environment(local=address is None)
    from mi_ray.cluster.callbacks import Watch
    from mi_ray.cluster.runner import Runner

    return Runner(study, store, address, console, Watch(**(watched or {}))).run(until)


@contextmanager
def one_ray() -> Iterator[None]:
    """Ray lasts at most as long as the block: studies in it share one, and it is left (a local one ends) with it."""
    try:
        yield
    finally:
        if "ray" in sys.modules:
            import ray

            ray.shutdown()
