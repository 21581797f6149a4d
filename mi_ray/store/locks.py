"""TODO."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK_EVERY = 0.5  # seconds between tries to get a lock that another holds


def holder(path: Path) -> str:
    """Who says in a lock file that it holds it."""
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has just begun, or just ended


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[str], None], *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock file of a local folder while the block runs; yields whether the file system could lock.

    waiting: told once who holds it, when somebody does. shared: together with others that share it. The kernel frees the
    lock of a process that ended however it ended, so that no dead one's file is in anybody's way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquired(path, waiting, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        # The last holder takes the file away; while others share it, the lock cannot be raised and the file stays.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(path: Path, waiting: Callable[[str], None], mode: int) -> int | None:
    """The descriptor of a lock file that is held; None where the file system has no locks."""
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            first = _alone(descriptor)
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
            os.close(descriptor)  # its holder took it away when it was done: the next one makes its own
            continue
        if first:  # who shares a lock leaves the name of the one who began
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
        return descriptor


def _alone(descriptor: int) -> bool:
    """Whether the lock could be had for oneself."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
