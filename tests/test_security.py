"""What docs/security.md says of the program, read from its source and tried: no code out of data, no file out of its place."""

import ast
import io
import json
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import audit

from mi_ray.data import SOURCES
from mi_ray.networks import read_weights
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells
from mi_ray.sweep_files import load_sweep, read_document

ROOT = Path(__file__).parent.parent

# What would run text or bytes as code, and the places that may, each for its reason: (file, what) -> why.
DANGEROUS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "yaml.unsafe_load_all",
    "yaml.full_load_all",
    "torch.save",
    "torch.hub.load",
    "marshal.loads",
    "marshal.load",
    "shelve.open",
    "pandas.read_pickle",
    "pd.read_pickle",
    "tarfile.open",
    "shutil.unpack_archive",
    "tempfile.mktemp",
    "runpy.run_path",
    "runpy.run_module",
    "os.execv",
    "os.execve",
    "os.spawnv",
    "pty.spawn",
}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "_pickle"}
WRITING = {
    "torch.save",
    *(f"{module}.{verb}" for module in PICKLES for verb in ("dump", "dumps")),
}  # a test makes hostile files
ALLOWED = {
    ("tests/test_security.py", "pickle.loads"): "shows that the hostile file of these tests is one",
    (
        "tests/mutation/mutations.py",
        "compile",
    ): "asks whether a changed source file is Python; the result is thrown away",
    ("tests/test_documents.py", "compile"): "runs the Python blocks of README and the documents, as their readers do",
    ("tests/test_documents.py", "exec"): "the same",
    ("tests/test_documents.py", "eval"): "the same",
    (
        "tests/data/test_pictures.py",
        "pickle.loads",
    ): "hands images on disk over as Ray does, which must bring none of their pixels along",
    ("tests/mutation/mutate.py", "tarfile.open"): "unpacks a copy of this repository that it packed itself",
}


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name as imported, call) of every call by name; `from os import system` is `os.system` too."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield f"{names.get(first, first)}{dot}{rest}", node


def dangerous(name: str, call: ast.Call) -> str | None:
    """What is dangerous about a call, or None."""
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in DANGEROUS or name.split(".")[0] in PICKLES:
        return name
    if name == "torch.load" and keywords.get("weights_only") != "True":
        return name
    if name in ("numpy.load", "np.load") and keywords.get("allow_pickle", "False") != "False":
        return name
    if keywords.get("shell", "False") != "False":
        return "shell=True"
    if "trust_remote_code" in keywords:
        return "trust_remote_code"
    return None


def found_in(trees: dict[str, ast.Module]) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for path, tree in trees.items():
        for name, call in calls(tree):
            what = dangerous(name, call)
            if what is not None and not (path.startswith("tests/") and what in WRITING):
                found.setdefault((path, what), []).append(call.lineno)
    return found


def test_nothing_runs_data_as_code_outside_the_list() -> None:
    files = [path for folder in ("mi_ray", "analysis", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = found_in({str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files})
    assert {place: lines for place, lines in found.items() if place not in ALLOWED} == {}
    assert {place[0] for place in ALLOWED if place not in found} == set(), "an entry that nothing needs"
    assert not [place for place in ALLOWED if not place[0].startswith("tests/")], (
        "the program itself needs no exception"
    )


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import os\nos.system('ls')",
        "from os import system as s\ns('ls')",
        "import pickle\npickle.load(f)",
        "from pickle import loads\nloads(b)",
        "import pickle as p\np.Unpickler(f)",
        "import cloudpickle\ncloudpickle.loads(b)",
        "import yaml\nyaml.load(t, Loader=yaml.Loader)",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import subprocess\nsubprocess.run(c, shell=True)",
        "import tarfile\ntarfile.open(f)",
        "__import__(name)",
        "import torch\ntorch.save(x, f)",
        "import pickle\npickle.dumps(x)",
    ],
)
def test_the_search_finds_it(source: str) -> None:
    assert len(found_in({"a.py": ast.parse(source)})) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load(t)",
        "import torch\ntorch.load(f, weights_only=True)",
        "import re\nre.compile(p)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import subprocess\nsubprocess.run(['ls'])",
        "model.eval()",
    ],
)
def test_the_search_leaves_safe_calls_alone(source: str) -> None:
    assert found_in({"a.py": ast.parse(source)}) == {}


MARK = "somebody's code ran"


class Hostile:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (MARK, 0o700)


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert not Path(MARK).exists()


def test_the_hostile_object_is_hostile() -> None:
    """Else the tests below would pass for the wrong reason."""
    pickle.loads(pickle.dumps(Hostile()))
    Path(MARK).rmdir()


def test_weights_that_hold_code_are_refused_and_the_code_does_not_run() -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:  # the form of torch.save
        archive.writestr("archive/data.pkl", pickle.dumps(Hostile(), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    Path("net.pt").write_bytes(inner.getvalue())
    with pytest.raises(ValueError, match="weights"):
        read_weights(Path("net.pt"))
    Path("legacy.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(ValueError, match="weights"):
        read_weights(Path("legacy.pt"))


def test_an_archive_of_images_that_holds_code_is_refused_and_the_code_does_not_run() -> None:
    arrays = {name: np.zeros((2, 8, 8, 3), np.uint8) for name in ("x_train", "x_test")}
    labels = {name: np.array([0, 1]) for name in ("y_train", "y_test")}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **labels)
    with zipfile.ZipFile(buffer, "a") as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        archive.writestr("extra.npy", header.getvalue() + pickle.dumps(Hostile()))
    Path("data.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="without pickles"):
        SOURCES.make("npz", {"path": "data.npz"}).load()


def test_an_archive_whose_members_name_paths_outside_writes_nothing() -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        x_train=np.zeros((2, 8, 8, 3), np.uint8),
        y_train=np.array([0, 1]),
        y_test=np.array([0, 1]),
        x_test=np.zeros((2, 8, 8, 3), np.uint8),
    )
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("../../outside.npy", b"not an array")
        archive.writestr("/outside.npy", b"not an array")
    Path("data.npz").write_bytes(buffer.getvalue())
    assert len(SOURCES.make("npz", {"path": "data.npz"}).load().train_labels) == 2
    everything = [path for path in Path("..").rglob("*") if path.is_file()]
    assert [path.name for path in everything] == ["data.npz"]


@pytest.mark.parametrize(
    "text",
    [
        f"!!python/object/apply:os.mkdir ['{MARK}']",
        f"name: !!python/object/apply:os.mkdir ['{MARK}']",
        "name: !!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_yaml_that_asks_for_objects_is_refused(text: str) -> None:
    Path("study.yaml").write_text(text)
    with pytest.raises(ValueError, match="must be YAML"):
        read_document(Path("study.yaml"))


def sweep_file(**changes: object) -> Path:
    document = {
        "name": "study",
        "classifiers": [{"name": "c", "architecture": "cnn_small"}],
        "defenses": ["none"],
        "attacks": [{"pgd": {"steps": 1, "step_size": 0.1}, "epsilon": 0.1}],
        **changes,
    }
    path = Path("study.yaml")
    path.write_text(yaml.safe_dump(document))
    return path


OUTSIDE = [
    "../other",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a/../../b",
    "~/x",
    "",
    ".hidden",
    "a\n",
    "a\x00b",
    "x" * 300,
    "a\\b",
    "$(x)",
]


def test_the_file_that_the_next_tests_change_is_a_good_one() -> None:
    assert load_sweep(sweep_file(name="a.b-c_1")).name == "a.b-c_1"
    assert load_sweep(sweep_file(plugins=["my_package.my_defense"], figures=["fig3b", "mine.figure"])).plugins


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_studys_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        load_sweep(sweep_file(name=name))


@pytest.mark.parametrize("key", ["figures", "plugins"])
@pytest.mark.parametrize("name", [*OUTSIDE[:-4], ".relative", "a..b", "a.b.", "os;x"])
def test_figures_and_plugins_are_modules_by_their_dotted_names_and_never_paths(key: str, name: str) -> None:
    with pytest.raises(ValueError, match=key):
        load_sweep(sweep_file(**{key: [name]}))


@pytest.mark.parametrize(
    "factory", ["../x:build", "os", "a/b:c", ":build", "x:", "x:a.b", "x:a()", ".x:build", "a..b:c"]
)
def test_a_factory_is_a_function_by_its_dotted_name(factory: str) -> None:
    entry = {"name": "c", "factory": factory, "weights": "net.safetensors"}
    with pytest.raises(ValueError, match="factory"):
        load_sweep(sweep_file(classifiers=[entry]))


@pytest.mark.parametrize("path", ["../evil", "studies/../../evil", "/etc/evil", "records/..", ".."])
def test_a_store_writes_reads_and_removes_nothing_outside(path: str) -> None:
    store = Store("results", create=True)
    Path("evil").write_text("kept")
    for deed in (
        lambda: store.write_bytes(path, b"x"),
        lambda: store.read_bytes(path),
        lambda: store.remove(path),
        lambda: store.exists(path),
        lambda: store.files(path),
    ):
        with pytest.raises(ValueError, match="must lead into it"):
            deed()
    assert Path("evil").read_text() == "kept"


def test_a_link_in_a_store_that_leads_out_of_it_is_not_written_through() -> None:
    store = Store("results", create=True)
    Path("outside").mkdir()
    Path("results/studies").mkdir()
    Path("results/studies/s").symlink_to(Path("outside").resolve())
    Path("results/a").write_text("kept")
    for deed in (
        lambda: store.write_bytes("studies/s/a.png", b"x"),
        lambda: store.write_bytes("studies/s/new/a.png", b"x"),
        lambda: store.move("a", "studies/s/a"),
    ):
        with pytest.raises(ValueError, match="what is written to a store must stay in it"):
            deed()
    assert list(Path("outside").iterdir()) == []
    assert Path("results/a").read_text() == "kept"


def test_a_store_may_itself_be_behind_a_link() -> None:
    Path("disk").mkdir()
    Path("results").symlink_to(Path("disk").resolve())
    Store("results", create=True).write_bytes("studies/s/a", b"x")
    Store(f"file://{Path('results').absolute()}").write_bytes("studies/s/b", b"x")
    assert sorted(path.name for path in Path("disk/studies/s").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("root", ["/srv/elsewhere", "../elsewhere", "~/elsewhere", "data/../../elsewhere"])
@pytest.mark.parametrize("key", ["dataset", "pool"])
def test_a_file_may_not_have_a_download_written_elsewhere_but_a_person_may(key: str, root: str) -> None:
    file = sweep_file(**{key: {"cifar10": {"root": root, "download": True}}})
    with pytest.raises(ValueError, match=rf"{key}.cifar10.root must be a folder below the current one"):
        load_sweep(file)
    # An option of a person's that says nothing of the place leaves the file's word for it as it was.
    with pytest.raises(ValueError, match="below the current one"):
        load_sweep(file, overrides={f"{key}.cifar10.download": True})
    assert load_sweep(file, overrides={f"{key}.cifar10.root": root})
    assert load_sweep(sweep_file(**{key: {"cifar10": {"root": root}}}))  # it only reads there
    assert load_sweep(sweep_file(**{key: {"cifar10": {"root": "data/a", "download": True}}}))


def test_a_study_of_another_store_is_not_read_by_a_path() -> None:
    with pytest.raises(ValueError, match="must lead into it"):
        read_cells(Store("results", create=True), "../../other/studies/x")


def test_a_token_for_a_local_ray_is_in_the_environment_and_in_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from mi_ray.cluster.connect import prepare_environment

    monkeypatch.setattr(os, "environ", {"HOME": str(Path.cwd())})
    prepare_environment(local=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch(r"[0-9a-f]{64}", os.environ["RAY_AUTH_TOKEN"])
    first = os.environ["RAY_AUTH_TOKEN"]
    del os.environ["RAY_AUTH_TOKEN"]
    prepare_environment(local=True)
    assert os.environ["RAY_AUTH_TOKEN"] != first
    assert list(Path.cwd().rglob("*")) == []


def test_what_the_repository_runs_itself_is_executable_and_no_other_file_is() -> None:
    scripts = {"cluster/slurm.sh", "tests/cluster/two_hosts.sh", "tests/cluster/slurm_alone.sh"}
    files = [
        path
        for folder in ("mi_ray", "analysis", "tests", "sweeps", "docs", "cluster")
        for path in (ROOT / folder).rglob("*")
    ]
    executable = {
        str(p.relative_to(ROOT))
        for p in files
        if p.is_file() and p.suffix != ".pyc" and p.stat().st_mode & stat.S_IXUSR
    }
    assert executable == scripts


def test_the_audit_reads_what_pip_audit_says() -> None:
    weakness = {"id": "CVE-1", "fix_versions": ["2.0"]}
    packages = [
        {"name": "a", "version": "1.0", "vulns": [weakness]},
        {"name": "b", "version": "1.0", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    ]
    assert audit.read(json.dumps({"dependencies": packages})) == (["a 1.0: CVE-1, mended in ['2.0']"], 2, 1)
    with pytest.raises(ValueError):
        audit.read("")
