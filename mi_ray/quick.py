"""Whether a study is finished, from hashes alone: nothing heavy is imported, so the answer takes a second."""

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mi_ray.config import Sweep
from mi_ray.plan import study_fingerprint
from mi_ray.records import PUBLISHED, DamagedFileError, Store

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
        if kind == "records":
            for line in _compacted(store, wanted, sizes):
                digest.update(line.encode())
    return digest.hexdigest()


def _compacted(store: Store, wanted: set[str], sizes: Mapping[str, int]) -> Iterator[str]:
    """Where the compacted ones of these cells are, and the sizes of the parts that hold them."""
    store.refresh()
    places = store.compacted.places
    rows = [store.compacted.row(places[cell]) for cell in sorted(wanted & places.keys())]
    yield from (f"{row}\n" for row in rows)
    for part in sorted({row["part"] for row in rows}):
        yield f"{part}|{sizes.get(f'{PUBLISHED}/{part}')}\n"


def seal(store: Store, sweep: Sweep) -> None:
    """Write into the manifest of a complete study what `is_finished` looks for: the last thing that a run does."""
    path = f"studies/{sweep.name}/{MANIFEST}"
    manifest = store.read_json(path)
    own = sorted(name for name in store.files(f"studies/{sweep.name}") if name != path)
    found = {
        "fingerprint": fingerprint(sweep), "inventory": inventory(store, sweep.name, manifest["keys"]),
        "files": {name: _hash_of(store, name) for name in own},
    }  # fmt: skip
    store.write_json(path, {**manifest, **found})


def is_sealed(store: Store, study: str) -> bool:
    """Whether a study was complete and still has all the files that it had then, by name and size."""
    try:
        manifest = store.read_json(f"studies/{study}/{MANIFEST}")
        return bool(manifest.get("inventory") == inventory(store, study, manifest["keys"]))
    except (DamagedFileError, OSError, KeyError, TypeError, AttributeError):
        return False


def seal_again(store: Store, study: str, drawn: Iterable[str] = ()) -> None:
    """Renew a study's seal after its files were moved about with nothing lost, or some of its figures drawn again."""
    path = f"studies/{study}/{MANIFEST}"
    manifest = store.read_json(path)
    files = {**manifest.get("files", {}), **{name: _hash_of(store, name) for name in drawn}}
    store.write_json(path, {**manifest, "inventory": inventory(store, study, manifest["keys"]), "files": files})


def _hash_of(store: Store, path: str) -> str:
    return hashlib.sha256(store.read_bytes(path)).hexdigest()


def unseal(store: Store, study: str) -> bool:
    """Let the next sweep look at everything of a study again; whether it was sealed."""
    path = f"studies/{study}/{MANIFEST}"
    try:
        manifest = store.read_json(path)
        if "inventory" not in manifest:
            return False
        store.write_json(path, {name: value for name, value in manifest.items() if name not in ("inventory", "files")})
    except (DamagedFileError, FileNotFoundError, TypeError):
        return False  # no manifest, no seal
    return True


def is_finished(sweep: Sweep, out: str) -> bool:
    """Whether the store says that this very study is complete and still holds all its files."""
    try:
        store = Store(out)
        manifest = store.read_json(f"studies/{sweep.name}/{MANIFEST}")
        same = manifest["state"] == "complete" and manifest["fingerprint"] == fingerprint(sweep)
        return bool(same and manifest["inventory"] == inventory(store, sweep.name, manifest["keys"]))
    except (DamagedFileError, ValueError, OSError, KeyError, TypeError):
        return False  # not sure: the full plan decides
