"""Whether a study is finished, from hashes alone: nothing heavy is imported, so the answer takes a second."""

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from mi_ray.config import Sweep
from mi_ray.plan import study_fingerprint
from mi_ray.records import DamagedFileError, Store

MANIFEST = "manifest.json"


def fingerprint(sweep: Sweep) -> str:
    """See `plan.study_fingerprint`: over this program's sources and the sweep's plugins and factories, unimported."""
    code = list(Path(__file__).parent.rglob("*.py"))
    for module in [*sweep.plugins, *(e.factory.partition(":")[0] for e in sweep.classifiers if e.factory)]:
        try:
            spec = importlib.util.find_spec(module)
        except ImportError:
            spec = None
        if spec is not None and spec.origin is not None:
            code.append(Path(spec.origin))
    return study_fingerprint(sweep, code)


def inventory(store: Store, study: str, keys: Mapping[str, Iterable[str]]) -> str:
    """A hash of the names and sizes of all files of a study and that it refers to: it changes when one is lost or cut."""
    digest = hashlib.sha256()
    own = f"studies/{study}"
    digest.update(repr(sorted(item for item in store.files(own).items() if item[0] != f"{own}/{MANIFEST}")).encode())
    for kind in sorted(keys):
        sizes = store.files(kind)
        wanted = set(keys[kind])
        for path in sorted(path for path in sizes if path.split("/")[1] in wanted):
            digest.update(f"{path}|{sizes[path]}\n".encode())
    return digest.hexdigest()


def seal(store: Store, sweep: Sweep) -> None:
    """Write into the manifest of a complete study what `is_finished` looks for: the last thing that a run does."""
    path = f"studies/{sweep.name}/{MANIFEST}"
    manifest = store.read_json(path)
    found = {"fingerprint": fingerprint(sweep), "inventory": inventory(store, sweep.name, manifest["keys"])}
    store.write_json(path, {**manifest, **found})


def is_finished(sweep: Sweep, out: str) -> bool:
    """Whether the store says that this very study is complete and still holds all its files."""
    try:
        store = Store(out)
        manifest = store.read_json(f"studies/{sweep.name}/{MANIFEST}")
        same = manifest["state"] == "complete" and manifest["fingerprint"] == fingerprint(sweep)
        return bool(same and manifest["inventory"] == inventory(store, sweep.name, manifest["keys"]))
    except (DamagedFileError, ValueError, OSError, KeyError, TypeError):
        return False  # not sure: the full plan decides
