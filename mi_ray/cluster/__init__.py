"""The only folder that imports Ray: training, blocks of points as tasks, defense settings as trials, and a study
from end to end."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # Ray reads its environment when it is first imported, so nothing here may import it too early.
    from rich.console import Console

    from mi_ray.cluster.session import CellsWritten, Outcome
    from mi_ray.store.blocks import Store
    from mi_ray.study.prepare import Study


def run_study(
    study: "Study",
    store: "Store",
    address: str | None,
    console: "Console",
    until: Literal["train", "attack", "sweep"] = "sweep",
    tensorboard: str | None = None,
    callbacks: Sequence[str] = (),
    cells_written: "CellsWritten" = lambda store, study: None,
) -> "Outcome":
    """Do all that is missing of a study, on a cluster or on a local Ray (address None).

    Ray is started or joined when something has to be computed, and is left for the next study (see `one_ray`).
    until: the stage to stop after. tensorboard, callbacks: see `cluster.callbacks.Callbacks`. cells_written: called
    each time that cells.parquet is written and has cells that are done, first before the checks and then after them.
    Raises ValueError for an address or a callback that cannot be.
    """
    from mi_ray.cluster.connect import check_address, prepare_environment

    check_address(address)
    prepare_environment(local=address is None)
    from mi_ray.cluster.callbacks import Callbacks
    from mi_ray.cluster.runner import run
    from mi_ray.cluster.session import Session

    session = Session(study, store, address, console, Callbacks(tensorboard, callbacks), cells_written)
    return run(session, until)


@contextmanager
def one_ray() -> Iterator[None]:
    """Ray lasts at most as long as the block: studies in it share one, and it is left (a local one ends) with it."""
    try:
        yield
    finally:
        if "ray" in sys.modules:
            import ray

            ray.shutdown()
