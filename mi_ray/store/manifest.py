"""A study's manifest.json: the only code that writes one, and that says what is written there.

A manifest says how far its study is, which results the study refers to, and where they came from (versions, machine,
commit). The manifest of a complete study is also *sealed*: it holds hashes of the sweep, of the code, and of the names
and sizes of the study's files. By them a later run recognises the finished study without importing torch, Ray or
matplotlib and without reading its rows, so that the answer takes a second.
"""

import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow.compute as pc

from mi_ray.config import Sweep, texts_in
from mi_ray.own_code import imported_sources
from mi_ray.store.blocks import PUBLISHED, Store
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import canonical
from mi_ray.store.locks import running
from mi_ray.store.schemas import KINDS

# "checking" is the state of a study whose cells and figures are there while its checks still run.
StudyState = Literal["running", "trained", "attacked", "checking", "incomplete", "complete"]
UNFINISHED: tuple[StudyState, ...] = ("running", "trained", "attacked", "checking")  # the study has not been judged yet
CUT_SHORT = "cut short"  # how the state of a study begins whose run was stopped, or has died
# How the states begin of studies on which nobody works: a run that goes on after an earlier stage says "running" first.
ENDED = ("complete", "incomplete", "trained", "attacked", CUT_SHORT, "damaged")
Keys = Mapping[str, Sequence[str]]  # kind of result -> the keys, folders of the store, that a study refers to

PROGRAM = Path(__file__).parent.parent  # the sources of all of mi_ray
DECIDING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # instructions by which the arithmetic of a CPU differs
PACKAGES = ("mi-ray", "torch", "torchvision", "ray", "optuna", "pyarrow", "numpy", "scipy")
# Folders and files of the program that no row comes from; sweeps has templates of plugins.
NO_ROWS = ("figures", "page", "sweeps", "launch", "cli.py", "schema.py")
# Datasets that lie in no folder of a person's.
WITHOUT_FILES = ("digits",)
DOUBTED = "problems"  # what the manifest of a study has in which a check found some, until a sweep writes it anew
SEAL = ("fingerprint", "inventory", "files", "drawn")  # what only a sealed manifest has


def _path(study: str) -> str:
    return f"studies/{study}/manifest.json"


def report_path(study: str) -> str:
    """Where the page that shows a study is. It is made again at any time, so no seal holds its content."""
    return f"studies/{study}/report.html"


def read_manifest(store: Store, study: str) -> dict[str, Any]:
    """A study's manifest. Raises DamagedFileError when it is absent or does not say what the study refers to."""
    path = _path(study)
    found = store.read_json(path) if store.exists(path) else None
    if not isinstance(found, dict) or not isinstance(found.get("keys"), dict):
        raise DamagedFileError(f"{path} must say what the study refers to; run the study again, or remove its folder")
    return found


def of_same_images(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two manifests are of one dataset, by a digest of all its images; also where one of them does not say."""
    digests = {_dataset(manifest).get("digest") for manifest in (left, right)} - {None}
    return len(digests) < 2


def _dataset(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    found = manifest.get("dataset")
    return found if isinstance(found, dict) else {}


def refuse_other_images(store: Store, studies: Sequence[str]) -> None:
    """Raise ValueError where two studies are of other images, so that their points are not the same, whatever their numbers."""
    known = [(study, read_manifest(store, study)) for study in studies if store.exists(_path(study))]
    for study, manifest in known[1:]:
        if not of_same_images(known[0][1], manifest):
            told = [
                f"{name}: {_dataset(each)['name']}, SHA-256 {_dataset(each)['digest'][:12]}…"
                for name, each in (known[0], (study, manifest))
            ]
            raise ValueError(f"studies must be of the same images to be compared by point; {'; '.join(told)}")


def write_manifest(store: Store, study: str, state: StudyState, keys: Keys, about: Mapping[str, object]) -> None:
    """Write a study's manifest anew, with the provenance of this process; a seal that it had is gone.

    state: how far the study is. keys: every folder of the store that it refers to, which `unreferenced` then leaves
    alone. about: further values for readers, such as the planned passes, by name.
    """
    told = {"name": study, "state": state, "keys": keys, "provenance": provenance()}
    store.write_json(_path(study), {**told, **about})


def write_sweep(store: Store, sweep: Sweep) -> None:
    """Write a study's study.yaml: its sweep with every default written out."""
    import yaml

    text = yaml.safe_dump(sweep.document(), sort_keys=False, allow_unicode=True)
    store.write_bytes(f"studies/{sweep.name}/study.yaml", text.encode())


def provenance() -> dict[str, object]:
    """Versions, machine, and the commit of the program where it runs from a git checkout."""
    git = ["git", "-C", str(PROGRAM)]
    commit: str | None = None
    dirty = False
    try:
        # Installed into an environment in somebody's repository, the program is none of its files.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
        dirty = bool(status.stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        commit = None  # The program was installed from a wheel, or git is missing: the versions say what ran.
    return {
        "versions": versions(),
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "processor": processor(),
        "commit": commit,
        "dirty": dirty,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions() -> dict[str, str]:
    """What is installed, by package; of sources that are used without being installed that they are not."""
    told = {}
    for name in PACKAGES:
        try:
            told[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            told[name] = "not installed"
    return told


def processor() -> str:
    """The kind of processor, on which last bits depend: its name and model, and which of the instructions that decide it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []  # No Linux: the system has a name for it.
    about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = about.get("model name") or platform.processor() or platform.machine()
    model = [f"{key} {about[key]}" for key in ("cpu family", "model") if key in about]
    return ", ".join([name, *model, *(flag for flag in DECIDING if flag in about.get("flags", "").split())])


def study_state(sweep: Sweep, out: str) -> Literal["finished", "figures", "open"]:
    """What is left to do of a sweep in the store at `out`, judged by hashes alone.

    "finished": its rows and its figures are there and nothing that they came from has changed, so there is nothing to
    do. "figures": its rows are complete, but the figures must be drawn again and then sealed by `seal_figures`,
    because the code of a figure or the list of figures has changed, one could not be drawn, or a file of one is lost.
    "open": the full plan has to decide what is missing; this is also the answer where the store cannot be read.
    """
    try:
        store = Store(out)
        manifest = read_manifest(store, sweep.name)
        same = manifest["state"] == "complete" and manifest["fingerprint"] == fingerprint(sweep)
        if not same or manifest["inventory"] != inventory(store, sweep.name, manifest["keys"]):
            return "open"
        return "finished" if manifest.get("drawn") == _drawn(store, sweep) else "figures"
    except (DamagedFileError, ValueError, OSError, KeyError, TypeError):
        return "open"


def fingerprint(sweep: Sweep) -> str:
    """A hash of everything that a study's rows came from, and so of no figure.

    It covers the sweep without its list of figures, the data files, and the sources of this program (without the folders and
    files in `NO_ROWS`), of the sweep's plugins, of the modules of its factories, and of what these import from their own
    folders. A module is found without being run.
    """
    code = [path for path in PROGRAM.rglob("*.py") if path.relative_to(PROGRAM).parts[0] not in NO_ROWS]
    modules = [*sweep.plugins, *(factory.partition(":")[0] for factory in sweep.factories)]
    own = [(module, path) for module in modules for path in _source(module)]
    own_files = {file for module, path in own for file in (path, *imported_sources(module, path))}
    return study_fingerprint(sweep, [*code, *own_files])


def study_fingerprint(sweep: Sweep, code: Iterable[Path]) -> str:
    """`fingerprint` over given source files. Data files are looked at by size and time, which takes no reading."""
    digest = hashlib.sha256(canonical(sweep.model_dump(mode="json", exclude={"figures"})).encode())
    for path in sorted(code):
        digest.update(path.name.encode() + path.read_bytes())
    sources = [sweep.dataset] if sweep.pool is None else [sweep.dataset, sweep.pool]
    places = [place for name, written in sources if name not in WITHOUT_FILES for place in _places(written, "data")]
    for entry in sweep.classifiers:
        places += [entry.weights] if entry.weights else []
        places += texts_in(entry.arguments)
        places += _places(entry.source.values, "models") if entry.source else []
    places += [place for entry in sweep.defenses for place in texts_in(entry.method.values)]
    for place in sorted(map(Path, places)):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                digest.update(f"{path}|{path.stat().st_size}|{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _places(written: Mapping[str, object], unsaid: str) -> list[str]:
    """Where the files of a dataset or of a network by name may lie. unsaid: the folder that holds them where none is named."""
    return [*texts_in(written), *([] if {"path", "root"} & set(written) else [unsaid])]


def figures_fingerprint(sweep: Sweep) -> str:
    """A hash of everything that a study's figures came from beside its rows.

    It covers the list of figures, mi_ray/figures and mi_ray/page, and, for each figure of a person's own, all Python files in
    the folder of its module, since a script may call what lies beside it. What figures import from the rest of the program,
    `fingerprint` covers.
    """
    digest = hashlib.sha256(canonical(list(sweep.figures)).encode())
    code = set((PROGRAM / "figures").rglob("*.py"))
    code |= {path for path in (PROGRAM / "page").iterdir() if path.is_file()}
    for module in sweep.own_figures:
        code.update(file for path in _source(module) for file in path.parent.glob("*.py"))
    for path in sorted(code):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _source(module: str) -> list[Path]:
    """The source file of a module that is not imported for it; empty where there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return []
    return [] if spec is None or spec.origin is None else [Path(spec.origin)]


def inventory(store: Store, study: str, keys: Mapping[str, Iterable[str]]) -> str:
    """A hash of the names and sizes of a study's own files and of all files that it refers to, figures left out.

    It changes when a file is lost or cut short. The manifest is left out too, since it holds this very hash.
    """
    digest = hashlib.sha256()
    own = store.files(f"studies/{study}")
    apart = (_path(study), report_path(study), f"studies/{study}/figures/")
    digest.update(repr(sorted(item for item in own.items() if not item[0].startswith(apart))).encode())
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
    """The places of those of these cells that are compacted, and the sizes of the parts that hold them."""
    store.refresh()
    places = store.compacted.places
    found = [places[cell] for cell in sorted(wanted & places.keys())]
    yield from (f"{place}\n" for place in found)
    for part in sorted({place.part for place in found}):
        yield f"{part}|{sizes.get(f'{PUBLISHED}/{part}')}\n"


def _drawn(store: Store, sweep: Sweep) -> dict[str, str]:
    """What a sealed manifest says of its study's figures: what they came from, their names and sizes, if the page is there."""
    files = sorted(store.files(f"studies/{sweep.name}/figures").items())
    there = (*files, store.exists(report_path(sweep.name)))
    return {
        "fingerprint": figures_fingerprint(sweep),
        "inventory": hashlib.sha256(repr(there).encode()).hexdigest(),
    }


def seal(store: Store, sweep: Sweep, *, drawn: bool = True) -> None:
    """Write into the manifest of a complete study what `study_state` looks for: the last thing that a run does.

    drawn: whether all of its figures could be drawn; where not, the next run draws them again and does nothing else.
    """
    manifest = read_manifest(store, sweep.name)
    apart = (_path(sweep.name), report_path(sweep.name))
    own = sorted(name for name in store.files(f"studies/{sweep.name}") if name not in apart)
    found = {
        "fingerprint": fingerprint(sweep),
        "inventory": inventory(store, sweep.name, manifest["keys"]),
        "files": {name: _hash_of(store, name) for name in own},
        "drawn": _drawn(store, sweep) if drawn else None,
    }
    store.write_json(_path(sweep.name), {**manifest, **found})


def seal_figures(store: Store, sweep: Sweep, paths: Iterable[str], *, drawn: bool = True) -> None:
    """Renew what a sealed study's manifest says of its figures, after these alone were drawn again.

    paths: the files that were written. drawn: whether all figures of the sweep could be drawn. A study that is not
    sealed stays as it is; one that is sealed for another sweep gets the hashes of its new files, and its own figures
    are drawn by the next run.
    """
    if not is_sealed(store, sweep.name):
        return
    manifest = read_manifest(store, sweep.name)
    changed = [path for path in paths if path != report_path(sweep.name)]
    same = manifest["fingerprint"] == fingerprint(sweep)
    if same and manifest.get("figures") != list(sweep.figures):
        write_sweep(store, sweep)
        manifest["figures"] = list(sweep.figures)
        manifest["inventory"] = inventory(store, sweep.name, manifest["keys"])
        changed.append(f"studies/{sweep.name}/study.yaml")
    manifest["files"] = {**manifest.get("files", {}), **{name: _hash_of(store, name) for name in changed}}
    manifest["drawn"] = _drawn(store, sweep) if same and drawn else None
    store.write_json(_path(sweep.name), manifest)


def is_sealed(store: Store, study: str) -> bool:
    """Whether a study was complete and still has all the files of its rows that it had then, by name and size."""
    try:
        manifest = read_manifest(store, study)
        return bool(manifest.get("inventory") == inventory(store, study, manifest["keys"]))
    except (DamagedFileError, OSError, TypeError):
        return False


def seal_again(store: Store, study: str) -> None:
    """Renew the seal of a study whose files were moved about with nothing lost, as a compaction does."""
    manifest = read_manifest(store, study)
    store.write_json(_path(study), {**manifest, "inventory": inventory(store, study, manifest["keys"])})


def unseal(store: Store, study: str) -> bool:
    """Let the next sweep look at everything of a study again; returns whether the study was sealed."""
    try:
        manifest = read_manifest(store, study)
    except (DamagedFileError, FileNotFoundError):
        return False  # A study without a manifest that can be read has no seal.
    sealed = "inventory" in manifest
    if sealed:
        kept = {name: value for name, value in manifest.items() if name not in SEAL}
        store.write_json(_path(study), kept | {DOUBTED: True})
    return sealed


def _hash_of(store: Store, path: str) -> str:
    """The SHA-256 of a file; of one that this process has written, that of what it wrote.

    Some storages return less of a new file for a while, so that reading it back could give a wrong hash.
    """
    return store.hashes.get(path) or hashlib.sha256(store.read_bytes(path)).hexdigest()


class Overview(NamedTuple):
    """One line of `mi-ray status`, all of it as text; only name and state are filled in for a damaged study."""

    study: str
    state: str
    cells: str = ""
    done: str = ""
    failed: str = ""
    missing: str = ""
    written: str = ""


def overviews(store: Store) -> list[Overview]:
    """How far each study of a store is.

    While a study runs, its state counts the pieces of its plan whose folders are there. Where nobody holds its lock any
    longer, its run was stopped or has died, and it is "cut short". Of a study that has ended its state says what is gone since. A
    study whose own files cannot be read is "damaged".
    """
    store.refresh()
    return [_overview(store, name) for name in store.folders("studies")]


def _overview(store: Store, name: str) -> Overview:
    counts = dict.fromkeys(("done", "failed", "missing"), 0)
    try:
        manifest = read_manifest(store, name)
        state = str(manifest.get("state", "unknown"))
        if state in UNFINISHED:
            state = _while_running(store, name, state) + ": " + _pieces(store, manifest["keys"])
        elif state == "complete" and (gone := _gone(store, manifest["keys"])):
            state += f", but {gone} gone: the same sweep makes them again"
        elif state == "complete" and manifest.get(DOUBTED):
            state += ", but a check found problems: the same sweep looks at all of its files again"
        if store.exists(f"studies/{name}/cells.parquet"):
            states = store.read_column(f"studies/{name}/cells.parquet", "state")
            counts |= {row["values"]: row["counts"] for row in pc.value_counts(states).to_pylist()}
    except DamagedFileError:
        return Overview(name, "damaged")
    total = manifest.get("cells", sum(counts.values()))
    written = str(manifest.get("provenance", {}).get("written", ""))
    done, failed, missing = (str(counts[each]) for each in ("done", "failed", "missing"))
    return Overview(name, state, str(total), done, failed, missing, written)


def _while_running(store: Store, name: str, state: str) -> str:
    """The state of a study that is not finished, with whether a process still works on it where that can be known."""
    if state not in ("running", "checking"):
        return state
    who = running(store, name)
    if who is None:
        return state  # Nobody can tell whether it still runs.
    return f"{state} ({who})" if who else f"{CUT_SHORT} while {state}; the same command goes on"


def _gone(store: Store, keys: Keys) -> str:
    """What a study refers to and the store has no longer, as counts by kind; nothing where all is there."""
    compacted = set(store.compacted.places) if "records" in keys else set()
    counts = {kind: len({*some} - {*store.folders(kind)} - compacted) for kind, some in keys.items()}
    return ", ".join(f"{count} of {len(keys[kind])} {kind}" for kind, count in counts.items() if count)


def _pieces(store: Store, keys: Keys) -> str:
    parts = []
    for kind in ("classifiers", "adversarial", "outputs"):
        there = set(store.folders(kind))  # Their files are not listed, since there may be millions of them.
        parts.append(f"{kind} {len(there & set(keys[kind]))}/{len(keys[kind])}")
    return ", ".join(parts)


def unreferenced(store: Store) -> list[tuple[str, int]]:
    """(folder, bytes) of every result that no study's manifest refers to.

    Raises DamagedFileError when a study has no readable manifest, and ValueError while a search is not finished, since
    nobody knows then what the study refers to.
    """
    wanted: set[str] = set()
    for name in store.folders("studies"):
        manifest = read_manifest(store, name)
        if manifest.get("open") and manifest["state"] in UNFINISHED:
            raise ValueError(
                f"every search must be finished before anything is collected; {name} is {manifest['state']}"
            )
        wanted |= {f"{kind}/{key}" for kind, found in manifest["keys"].items() for key in found}
    wanted.add(PUBLISHED)  # A part holds the cells of many studies, so that it is not collected cell by cell.
    loose: dict[str, int] = {}
    for kind in ("classifiers", *KINDS):
        for path, size in store.files(kind).items():
            folder = "/".join(path.split("/")[:2])
            if folder not in wanted:
                loose[folder] = loose.get(folder, 0) + size
    return sorted(loose.items())
