"""Locks on a store and its studies, so that commands that would disturb each other wait for one another.

A lock is a file that a process holds by `flock`. The kernel frees it when the process ends, however it ends, so that
the file of a dead process keeps nobody waiting. Object stores have no locks; where there is none, the person is told.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mi_ray.store.files import Files

LOCK_EVERY = 0.5  # seconds between tries to get a lock that another process holds

Tell = Callable[[str], None]  # shows a sentence to the person who waits


@contextlib.contextmanager
def lock_store(store: Files, tell: Tell, *, alone: bool = False) -> Iterator[None]:
    """Hold a store while the block runs: together with other sweeps, or alone, as a compaction needs it.

    Where the storage cannot lock, `tell` says so and what follows from it, and the block runs all the same.
    """
    if not store.local:
        what = (
            "no sweep must write to it meanwhile"
            if alone
            else "the same study started twice at once is computed twice, which wastes time and harms nothing"
        )
        tell(f"note: {store.uri} cannot be locked: {what}")
        yield
        return

    def waiting(who: str) -> None:
        tell(f"waiting for {who}, which works on {store.uri}")

    with locked(Path(store.root) / ".sweeps.lock", waiting, shared=not alone) as held:
        if not held:
            tell(f"note: the file system of {store.uri} has no locks")
        yield


@contextlib.contextmanager
def lock_study(store: Files, study: str, tell: Tell) -> Iterator[bool]:
    """Let one process at a time run a study, where the storage can lock; yields whether another was waited for."""
    waited_for: list[str] = []

    def waiting(who: str) -> None:
        waited_for.append(who)
        tell(f"{study}: waiting for {who}, which runs it in {store.uri}")

    lock = locked(_study_lock(store, study), waiting) if store.local else contextlib.nullcontext()
    with lock:
        yield bool(waited_for)


def running(store: Files, study: str) -> str | None:
    """Who runs a study now, in words; None where nobody does, and where the storage has no locks to tell it by."""
    path = _study_lock(store, study)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(path)
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(descriptor)


def _study_lock(store: Files, study: str) -> Path:
    return Path(store.root) / f".study-{study}.lock"


@contextlib.contextmanager
def locked(path: Path, waiting: Tell, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock file of a local folder while the block runs; yields whether the file system could lock.

    waiting: called once with the process that holds the lock, when one does. shared: hold it together with others that
    share it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquired(path, waiting, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        # The last holder takes the file away. While others share the lock it cannot be made exclusive, and it stays.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(path: Path, waiting: Tell, mode: int) -> int | None:
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
            time.sleep(LOCK_EVERY)
            continue
        except OSError:
            os.close(descriptor)
            return None
        if not _same_file(descriptor, path):
            os.close(descriptor)  # Its holder took the file away when it was done, so that a new one is made.
            continue
        if first:  # Whoever joins a shared lock leaves the name of the process that began it.
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
        return descriptor


def holder(path: Path) -> str:
    """Who says in a lock file that it holds it."""
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # It has just begun and not written its name yet, or has just ended.


def _exclusive(descriptor: int) -> bool:
    """Whether no other process held the lock, so that this one now holds it for itself."""
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
