"""Whether a study is finished, from hashes alone: nothing heavy is imported, so the answer takes a second."""

import hashlib
import importlib.util
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from mi_ray.config import Sweep
from mi_ray.store.blocks import PUBLISHED, Store
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import canonical
from mi_ray.store.schemas import Kind

MANIFEST = "manifest.json"
PROGRAM = Path(__file__).parent.parent  # the sources of all of mi_ray


def fingerprint(sweep: Sweep) -> str:
    """See `plan.study_fingerprint`: over this program's sources and the sweep's plugins and factories, unimported."""
    code = list(PROGRAM.rglob("*.py"))
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
        "fingerprint": fingerprint(sweep),
        "inventory": inventory(store, sweep.name, manifest["keys"]),
        "files": {name: _hash_of(store, name) for name in own},
    }
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


def study_fingerprint(sweep: Sweep, code: Iterable[Path]) -> str:
    """A hash of all that a finished study came from: sweep, overrides, data files, plugin and program sources.

    Cheap (files of data are looked at by size and time), so that a finished study is recognised before anything heavy
    is imported; when it differs, the full plan decides what is missing.
    """
    digest = hashlib.sha256(canonical(sweep.model_dump(mode="json")).encode())
    for path in sorted(code):
        digest.update(path.name.encode() + path.read_bytes())
    sources = [sweep.dataset] if sweep.pool is None else [sweep.dataset, sweep.pool]
    # A dataset with files is looked for in data/ by default.
    folders = [place for _, written in sources for place in list(_texts(written)) or ["data"]]
    written = folders + [e.weights for e in sweep.classifiers if e.weights]
    for place in sorted(map(Path, written)):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                digest.update(f"{path}|{path.stat().st_size}|{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)


def provenance() -> dict[str, Any]:
    """Versions, machine, and the commit of the program where there is one."""
    packages = ("mi-ray", "torch", "torchvision", "ray", "optuna", "pyarrow", "numpy", "scipy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    folder = str(Path(__file__).parent)
    git = ["git", "-C", folder]
    commit: str | None = None
    dirty = False
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
        dirty = bool(status.stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        commit = None  # installed from a wheel, or no git: the versions say what ran
    return {
        "versions": versions,
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "processor": platform.processor() or platform.machine(),
        "commit": commit,
        "dirty": dirty,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


KINDS: tuple[Kind, ...] = ("adversarial", "outputs", "records")

UNFINISHED = ("running", "trained", "attacked")  # a study that has no cells.parquet of its own plan yet


def study_states(store: Store) -> list[tuple[str, ...]]:
    """(study, state, cells, done, failed, missing, written) for each study.

    While a study runs, its state counts the pieces of its plan whose files are there. A study whose own files cannot
    be read is "damaged".
    """
    return [(name, *_state(store, name)) for name in store.folders("studies")]


def _state(store: Store, name: str) -> tuple[str, ...]:
    counts = dict.fromkeys(("done", "failed", "missing"), 0)
    try:
        manifest = manifest_of(store, name)
        state = str(manifest.get("state", "unknown"))
        if state in UNFINISHED:
            state += ": " + _pieces(store, manifest["keys"])
        if store.exists(f"studies/{name}/cells.parquet"):
            states = store.read_column(f"studies/{name}/cells.parquet", "state")
            counts |= {row["values"]: row["counts"] for row in pc.value_counts(states).to_pylist()}
    except DamagedFileError:
        return "damaged", *[""] * 5
    total = manifest.get("cells", sum(counts.values()))
    written = str(manifest.get("provenance", {}).get("written", ""))
    return state, *(str(n) for n in (total, counts["done"], counts["failed"], counts["missing"])), written


def manifest_of(store: Store, name: str) -> dict[str, Any]:
    """A study's manifest. Raises DamagedFileError when it is absent or does not say what the study refers to."""
    path = f"studies/{name}/manifest.json"
    found = store.read_json(path) if store.exists(path) else None
    if not isinstance(found, dict) or not isinstance(found.get("keys"), dict):
        raise DamagedFileError(f"{path} must say what the study refers to; run the study again, or remove its folder")
    return found


def _pieces(store: Store, keys: dict[str, list[str]]) -> str:
    parts = []
    for kind in ("classifiers", "adversarial", "outputs"):
        there = set(store.folders(kind))  # and not their files, which may be millions
        parts.append(f"{kind} {len(there & set(keys[kind]))}/{len(keys[kind])}")
    return ", ".join(parts)


def unreferenced(store: Store) -> list[tuple[str, int]]:
    """(folder, bytes) of every result that no study's manifest refers to.

    Raises DamagedFileError when a study has no readable manifest, and ValueError while a search is not finished, since
    nobody knows then what the study refers to.
    """
    wanted: set[str] = set()
    for name in store.folders("studies"):
        manifest = manifest_of(store, name)
        if manifest.get("open") and manifest["state"] in UNFINISHED:
            raise ValueError(
                f"every search must be finished before anything is collected; {name} is {manifest['state']}"
            )
        wanted |= {f"{kind}/{key}" for kind, found in manifest["keys"].items() for key in found}
    wanted.add(PUBLISHED)  # a part holds the cells of many studies: it is not collected cell by cell
    loose: dict[str, int] = {}
    for kind in ("classifiers", *KINDS):
        for path, size in store.files(kind).items():
            folder = "/".join(path.split("/")[:2])
            if folder not in wanted:
                loose[folder] = loose.get(folder, 0) + size
    return sorted(loose.items())
