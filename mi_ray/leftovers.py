"""What killed processes leave in a store: temporary files that nobody will rename any more."""

import re
import time
from pathlib import Path

from mi_ray.records import Store

_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{8}\.tmp$")
WRITTEN_IN = 5.0  # seconds in which a file that is being written changes, or gets its name


def _temporaries(root: Path) -> dict[Path, tuple[int, int]]:
    found = {}
    for path in root.rglob(".*.tmp"):
        try:
            about = path.stat()
        except FileNotFoundError:  # it has its name now
            continue
        if _TEMPORARY.match(path.name):
            found[path] = (about.st_size, about.st_mtime_ns)
    return found


def remove_leftovers(store: Store) -> int:
    """Remove the temporary files of a local store that stay as they are; returns how many.

    A live one of another run lasts for much less than `WRITTEN_IN`; were one removed, its block would be tried again.
    """
    if not store.local:
        return 0  # an object store has no temporary names
    first = _temporaries(Path(store.root))
    if not first:
        return 0
    time.sleep(WRITTEN_IN)
    second = _temporaries(Path(store.root))
    dead = [path for path, about in first.items() if second.get(path) == about]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(dead)
