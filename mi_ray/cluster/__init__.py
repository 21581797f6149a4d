"""The only folder that imports Ray: training, blocks of points as tasks, defense settings as trials, and a study
from end to end."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Ray reads its environment when it is first imported, so nothing here may import it too early.
    from rich.console import Console

    from mi_ray.cluster.session import CellsWritten, Outcome
    from mi_ray.plan.work import Until
    from mi_ray.store.blocks import Store
    from mi_ray.study.prepare import Study


def run_study(
    study: "Study",
    store: "Store",
    address: str | None,
    console: "Console",
    until: "Until" = "sweep",
    tensorboard: str | None = None,
    callbacks: Sequence[str] = (),
    cells_written: "CellsWritten" = lambda store, study: None,
) -> "Outcome":
    """Do all that is missing of a study, on a cluster or on a local Ray (address None).

    Ray is started or joined when something has to be computed, and is left for the next study (see `one_ray`). One that
    this process has joined already is used as it is, whatever the address.
    until: the stage to stop after. tensorboard, callbacks: see `cluster.callbacks.Callbacks`. cells_written: called
    each time that cells.parquet is written and has cells that are done, first before the checks and then after them.
    Raises ValueError for an address or a callback that cannot be.
    """
    from mi_ray.cluster.connect import check_address, prepare_environment

    joined = _joined()
    if not joined:
        check_address(address)
    prepare_environment(local=address is None and not joined)
    from mi_ray.cluster.callbacks import Callbacks
    from mi_ray.cluster.runner import run
    from mi_ray.cluster.session import Session

    session = Session(study, store, address, console, Callbacks(tensorboard, callbacks), cells_written)
    try:
        return run(session, until)
    finally:
        session.close()


@contextmanager
def one_ray() -> Iterator[None]:
    """Share one Ray among the studies of the block, and leave it at the end, with which a local one ends.

    A Ray that this process has joined before, as a caller from Python may have, is not left. What Ray and Tune, or we for them,
    put in the place of the caller's own is put back: handlers of signals, where this is the main thread, what prints the output
    of tasks, and the environment.
    """
    from mi_ray.cluster.connect import print_again, restore_environment

    before, environment = _joined(), dict(os.environ)
    here = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)} if here else {}
    try:
        yield
    finally:
        if _joined() and not before:
            sys.modules["ray"].shutdown()
            print_again()
        restore_environment(environment)
        for number, handler in handlers.items():
            if handler is not None:  # One that was not set from Python cannot be.
                signal.signal(number, handler)


def _joined() -> bool:
    """Whether this process has joined a Ray. Asking imports nothing, since Ray must find its environment set up."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())
