"""Locks on a store and its studies, so that commands that would disturb each other wait for one another.

On a disk a lock is a file that a process holds by `flock`. The kernel frees it when the process ends, however it ends,
so that the file of a dead process keeps nobody waiting. An object store has leases in their place (`mi_ray.store.leases`).
Where there is neither, the person is told.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mi_ray.store.files import Files, StorageError
from mi_ray.store.leases import (
    LOOK_EVERY,
    LOOKS,
    SHOWN_AS_DEAD,
    Tell,
    about_process,
    in_words,
    is_dead,
    leased,
    open_slot,
    refusal,
)

LOCK_EVERY = 0.5  # seconds between tries to get a lock that another process holds
SOON = 0.01  # likewise, of a lock that is held for a write alone
_COMPACTING = ".compact.lease"  # the lease of a compaction, which no sweep may disturb
_OF_A_STUDY = re.compile(r"^\.study-.+\.lease$")


@contextlib.contextmanager
def lock_store(store: Files, tell: Tell, *, alone: bool = False) -> Iterator[None]:
    """Hold a store while the block runs: together with other sweeps, or alone, as what moves or removes files needs it.

    Where the storage has neither locks nor leases, `tell` says so and what follows from it, and the block runs all the same.
    """
    if not store.local:
        with _lease_store(store, tell, alone):
            yield
        return

    def waiting(who: str) -> None:
        tell(f"waiting for {who}, which works on {store.uri}")

    with locked(Path(store.root) / ".sweeps.lock", waiting, shared=not alone) as held:
        if not held:
            tell(f"note: the file system of {store.uri} has no locks")
        yield


@contextlib.contextmanager
def lock_key(store: Files, key: str) -> Iterator[None]:
    """Keep other processes from changing the blocks of a key while the block runs, where the storage has locks.

    It is held for a look and a write, never while something is computed. An object store has nothing for so short a time.
    """
    if not store.local:
        yield
        return
    path = Path(store.root) / f".key-{key}.lock"
    with locked(path, lambda _: None, every=SOON) as held:
        try:
            yield
        finally:
            if not held:  # The file system has no locks, so that nobody needs the file.
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_trainings(store: Files, keys: Iterable[str], tell: Tell) -> Iterator[Callable[[str], None]]:
    """Let one process at a time train these classifiers, where the storage can lock: two studies may ask for the same one.

    Yields a function that releases one classifier's lock, given the classifier's key, as soon as it is trained. All
    processes take the locks in one order, so that none waits for another in a circle.
    """
    taken: dict[str, contextlib.ExitStack] = {}
    with contextlib.ExitStack() as every:
        for key in sorted(keys):
            taken[key] = every.enter_context(contextlib.ExitStack())
            if store.local:
                path = Path(store.root) / f".classifier-{key}.lock"
                held = locked(path, lambda who: tell(f"waiting for {who}, which trains in {store.uri}"))
                taken[key].enter_context(held)
            elif refusal(store) is None:
                taken[key].enter_context(_lease(store, f".classifier-{key}.lease", "which trains in", tell))
        yield lambda key: taken[key].close()


@contextlib.contextmanager
def _lease_store(store: Files, tell: Tell, alone: bool) -> Iterator[None]:
    """`lock_store` behind a URI: sweeps hold a lease on each study, and a compaction its own while nobody holds those."""
    why = refusal(store)
    if why is not None:
        what = (
            "no sweep must write to it meanwhile"
            if alone
            else "the same study started twice at once is computed twice, which wastes time and harms nothing"
        )
        tell(f"note: {store.uri} cannot be locked, since {why}: {what}")
    if why is not None or not alone:
        yield
        return
    with _lease(store, _COMPACTING, "which works alone on", tell):
        for name in sorted(filter(_OF_A_STUDY.match, store.names(""))):
            with _lease(store, name, "which works on", tell):
                pass  # Nobody holds it now, and whoever takes it sees the compaction's.
        yield


@contextlib.contextmanager
def _lease(store: Files, name: str, what: str, tell: Tell, waited_for: list[str] | None = None) -> Iterator[None]:
    """Hold a lease of a store. what: what its holder does, after "which". waited_for: gets who else held it."""

    def waiting(who: str) -> None:
        if waited_for is not None:
            waited_for.append(who)
        tell(f"waiting for {who}, {what} {store.uri}")

    def dead(who: str) -> None:
        tell(
            f"{who}, {what} {store.uri}, is dead or has not said for {LOOKS * LOOK_EVERY:g} s that it goes on: taking over"
        )

    with leased(open_slot(store, name), waiting, dead):
        yield


@contextlib.contextmanager
def lock_study(store: Files, study: str, tell: Tell) -> Iterator[bool]:
    """Let one process at a time run a study, where the storage can lock; yields whether another was waited for.

    Where it is a lease that is lost later, the stage that runs ends with LeaseLostError.
    """
    waited_for: list[str] = []

    def waiting(who: str) -> None:
        waited_for.append(who)
        tell(f"{study}: waiting for {who}, which runs it in {store.uri}")

    if store.local:
        with locked(_study_lock(store, study), waiting):
            yield bool(waited_for)
        return
    if refusal(store) is not None:
        yield False
        return
    while True:
        with _lease(store, _study_lease(study), f"which runs {study} in", tell, waited_for):
            if not store.exists(_COMPACTING):
                yield bool(waited_for)
                return
        with _lease(store, _COMPACTING, "which works alone on", tell):
            pass  # It is over, or its process was dead.


def running(store: Files, study: str) -> str | None:
    """Who runs a study now, in words; "" where nobody does, None where the storage has nothing to tell it by."""
    if not store.local:
        return _leasing(store, study)
    path = _study_lock(store, study)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(path)
    except OSError:
        return None
    else:
        return ""
    finally:
        os.close(descriptor)


def _leasing(store: Files, study: str) -> str | None:
    """`running` by the lease on a study. Where there is none, the store may have no leases at all.

    A storage that keeps no times, as Azure's through fsspec, cannot tell how old a lease is: its holder is taken at its word.
    """
    name = _study_lease(study)
    try:
        found = open_slot(store, name).read()
        if found is None:
            return None
        dead = is_dead(found[0]) or SHOWN_AS_DEAD < store.age(name) < math.inf
    except (StorageError, ValueError):
        return None
    return "" if dead else in_words(found[0])


def _study_lock(store: Files, study: str) -> Path:
    return Path(store.root) / f".study-{study}.lock"


def _study_lease(study: str) -> str:
    return f".study-{study}.lease"


@contextlib.contextmanager
def locked(path: Path, waiting: Tell, *, shared: bool = False, every: float = LOCK_EVERY) -> Iterator[bool]:
    """Hold a lock file of a local folder while the block runs; yields whether the file system could lock.

    waiting: called once with the process that holds the lock, when one does. shared: hold it together with others that
    share it. every: seconds between tries.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquired(path, waiting, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, every)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        # The last holder takes the file away. While others share the lock it cannot be made exclusive, and it stays. Who has
        # removed the folder that the file was in holds one of no name, and the file that is there now is another's.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(descriptor, path):
                path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(path: Path, waiting: Tell, mode: int, every: float) -> int | None:
    """The descriptor of a lock file that is now held; None where the file system has no locks."""
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            first = _exclusive(descriptor)
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if not told:
                waiting(holder(path))
            told = True
            time.sleep(every)
            continue
        except OSError:
            os.close(descriptor)
            return None
        if not _same_file(descriptor, path):
            os.close(descriptor)  # Its holder took the file away when it was done, so that a new one is made.
            continue
        if first:  # Whoever joins a shared lock leaves the name of the process that began it.
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(about_process()).encode(), 0)
        return descriptor


def holder(path: Path) -> str:
    """Who says in a lock file that it holds it."""
    try:
        return in_words(path.read_bytes())
    except OSError:
        return in_words(b"")


def _exclusive(descriptor: int) -> bool:
    """Try to take the lock for this process alone; returns whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened is still the one that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
