"""A finished study is recognised from hashes alone, and only while nothing that it came from or left has changed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.studies import ONE_GRID, TINY, Tiny, problems_in
from helpers.sweeps import document

import mi_ray.store.manifest
from mi_ray.config import Sweep
from mi_ray.store.blocks import Store
from mi_ray.store.manifest import (
    figures_fingerprint,
    fingerprint,
    inventory,
    is_sealed,
    overviews,
    processor,
    provenance,
    seal,
    seal_figures,
    study_state,
    unseal,
)


@pytest.fixture
def store(original: Tiny, tmp_path: Path) -> Store:
    """A copy that a test may damage."""
    return Store(shutil.copytree(original.store.root, tmp_path / "store"))


SAME = document(**{**TINY, **ONE_GRID})


def same(**changes: Any) -> Sweep:
    """The sweep that the study was made from, or one that differs from it."""
    return Sweep.model_validate({**SAME, **changes})


def test_a_finished_study_is_recognised(store: Store) -> None:
    assert study_state(same(), store.root) == "finished"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"points": {"count": 61, "selection": 20}},
        {"draws": 1},
        {"name": "other"},
        {"preset": "as_published"},
    ],
)
def test_another_sweep_is_not_taken_for_it(store: Store, changes: dict[str, Any]) -> None:
    assert study_state(same(**changes), store.root) == "open"


@pytest.mark.parametrize("kind", ["classifiers", "adversarial", "outputs", "records"])
def test_a_lost_or_shortened_file_is_noticed(store: Store, kind: str) -> None:
    path = Path(store.root) / next(iter(store.files(kind)))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert study_state(same(), store.root) == "open"
    path.write_bytes(content)
    assert study_state(same(), store.root) == "finished"
    path.unlink()
    assert study_state(same(), store.root) == "open"


def test_results_of_other_studies_do_not_matter(store: Store) -> None:
    store.write_bytes("outputs/foreign/points-00000-00020.parquet", b"x")
    assert study_state(same(), store.root) == "finished"


def test_what_is_incomplete_running_or_unreadable_is_not_finished(store: Store, tmp_path: Path) -> None:
    path = "studies/tiny/manifest.json"
    manifest = store.read_json(path)
    for changed in (
        {**manifest, "state": "incomplete"},
        {**manifest, "state": "running"},
        {**manifest, "fingerprint": None},
        {**manifest, "keys": 3},
        {},
        [],
    ):
        store.write_json(path, changed)
        assert study_state(same(), store.root) == "open"
    store.write_bytes(path, b"{")
    assert study_state(same(), store.root) == "open"
    assert study_state(same(), str(tmp_path / "nowhere")) == "open"
    assert not (tmp_path / "nowhere").exists()


def test_the_programs_own_source_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = fingerprint(same())
    (tmp_path / "attacks").mkdir()
    source = tmp_path / "attacks/pgd.py"  # in a folder of the program, wherever the fingerprint is written
    source.write_text("# a program\n")
    monkeypatch.setattr(mi_ray.store.manifest, "PROGRAM", tmp_path)
    after = fingerprint(same())
    source.write_text("# changed\n")
    assert len({before, after, fingerprint(same())}) == 3


def test_the_program_is_all_of_mi_ray() -> None:
    assert {"cli.py", "attacks", "store"} <= {path.name for path in mi_ray.store.manifest.PROGRAM.iterdir()}


def test_a_plugins_source_is_read_without_importing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = tmp_path / "plugin_that_raises_xyz.py"
    plugin.write_text("raise RuntimeError('imported')\n")
    named = same(plugins=["plugin_that_raises_xyz", "no.such.module"])
    before = fingerprint(named)
    plugin.write_text("raise RuntimeError('imported still')\n")
    assert fingerprint(named) != before


def test_an_inventory_is_of_names_and_sizes_of_the_named_keys(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", create=True)
    for key in "ab":
        store.write_bytes(f"outputs/{key}/f", b"1")
    keys = {"outputs": ["a"], "records": []}
    before = inventory(store, "tiny", keys)
    store.write_bytes("outputs/b/f", b"12")
    assert inventory(store, "tiny", keys) == before
    store.write_bytes("studies/tiny/manifest.json", b"{}")  # it holds the hash itself
    assert inventory(store, "tiny", keys) == before
    store.write_bytes("studies/tiny/figures/fig3b.png", b"1")  # Figures have an inventory of their own.
    assert inventory(store, "tiny", keys) == before
    store.write_bytes("studies/tiny/cells.parquet", b"1")
    summarised = inventory(store, "tiny", keys)
    assert summarised != before
    store.write_bytes("outputs/a/f", b"12")
    assert inventory(store, "tiny", keys) not in (before, summarised)


PNG = "studies/tiny/figures/fig3b.png"


@pytest.fixture
def drawn(store: Store) -> Store:
    """The finished study with a drawn figure."""
    store.write_bytes(PNG, b"a picture")
    seal(store, same())
    return store


def test_a_lost_figure_is_all_that_is_drawn_again(drawn: Store) -> None:
    assert study_state(same(), drawn.root) == "finished"
    drawn.remove(PNG)
    assert study_state(same(), drawn.root) == "figures"
    drawn.write_bytes(PNG, b"a picture")
    seal_figures(drawn, same(), [PNG])
    assert study_state(same(), drawn.root) == "finished"


def test_a_changed_source_of_figures_leaves_the_rows_finished(
    drawn: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = shutil.copytree(mi_ray.store.manifest.PROGRAM, tmp_path / "program")
    monkeypatch.setattr(mi_ray.store.manifest, "PROGRAM", program)
    assert study_state(same(), drawn.root) == "finished"
    with (program / "figures/fig3b.py").open("a") as source:
        source.write("# changed\n")
    assert study_state(same(), drawn.root) == "figures"
    seal_figures(drawn, same(), [PNG])
    assert study_state(same(), drawn.root) == "finished"
    with (program / "statistics.py").open("a") as source:  # Rows and figures both use it.
        source.write("# changed\n")
    assert study_state(same(), drawn.root) == "open"


def test_another_list_of_figures_is_drawn_and_told_and_nothing_else(drawn: Store) -> None:
    more = same(figures=["fig3b", "table2"])
    assert study_state(more, drawn.root) == "figures"
    drawn.write_bytes(table := "studies/tiny/figures/table2.csv", b"a,b")
    seal_figures(drawn, more, [table])
    assert study_state(more, drawn.root) == "finished"
    assert study_state(same(), drawn.root) == "figures"
    assert yaml.safe_load(drawn.read_bytes("studies/tiny/study.yaml"))["figures"] == ["fig3b", "table2"]
    assert problems_in(drawn) == []


def test_a_figure_that_could_not_be_drawn_is_tried_again(drawn: Store) -> None:
    seal(drawn, same(), drawn=False)
    assert study_state(same(), drawn.root) == "figures"
    seal_figures(drawn, same(), [PNG], drawn=False)
    assert study_state(same(), drawn.root) == "figures"
    seal_figures(drawn, same(), [PNG])
    assert study_state(same(), drawn.root) == "finished"


def test_figures_of_another_sweep_or_an_open_study_seal_nothing(drawn: Store) -> None:
    seal_figures(drawn, same(seed=1), [PNG])
    assert study_state(same(), drawn.root) == "figures"
    assert study_state(same(seed=1), drawn.root) == "open"
    assert unseal(drawn, "tiny")
    assert not unseal(drawn, "tiny")
    assert (
        overviews(drawn)[0].state
        == "complete, but a check found problems: the same sweep looks at all of its files again"
    )
    seal_figures(drawn, same(), [PNG])
    assert not is_sealed(drawn, "tiny")
    assert study_state(same(), drawn.root) == "open"


def test_a_persons_own_figure_is_read_with_what_lies_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "figures_of_mine_xyz"
    folder.mkdir()
    for name in ("__init__.py", "figure.py", "beside.py"):
        (folder / name).write_text("")
    named = same(figures=["figures_of_mine_xyz.figure"])
    found = {figures_fingerprint(named)}
    for changed in ("figure.py", "beside.py"):
        (folder / changed).write_text("raise RuntimeError('imported')\n")
        found.add(figures_fingerprint(named))
    assert len(found) == 3
    assert fingerprint(named) == fingerprint(same())


def test_the_answer_needs_neither_torch_nor_ray_nor_matplotlib(drawn: Store) -> None:
    code = (
        "import sys, mi_ray.config, mi_ray.store.manifest\n"
        f"sweep = mi_ray.config.Sweep.model_validate({SAME!r})\n"
        f"state = mi_ray.store.manifest.study_state(sweep, {drawn.root!r})\n"
        "print(state, sorted({'torch', 'ray', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "finished []"


def test_a_seal_holds_what_was_written_though_the_storage_hands_out_less_of_it_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_bytes(PNG, b"a picture")
    with monkeypatch.context() as lying:
        whole = Store.read_bytes
        lying.setattr(
            Store, "read_bytes", lambda self, path: whole(self, path)[:-3] if path == PNG else whole(self, path)
        )
        seal(store, same())
    assert problems_in(store) == []
    store.write_bytes(PNG, b"another")
    assert [problem for problem in problems_in(Store(store.root)) if PNG in problem] != []


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            "model name : AMD EPYC\ncpu family : 25\nmodel : 17\nflags : fpu avx2 avx512_bf16\n\nmodel name : other\n",
            "AMD EPYC, cpu family 25, model 17, avx2, avx512_bf16",
        ),
        ("processor : 0\n", "arm"),
        (None, "arm"),
    ],
)
def test_a_manifest_names_the_kind_of_processor(
    told: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, encoding: str) -> str:
        if told is None:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert processor() == expected


def test_another_list_of_figures_is_another_fingerprint_of_figures_and_none_of_rows() -> None:
    one = Sweep.model_validate(SAME)
    other = one.model_copy(update={"figures": ("epsilon_curve",)})
    assert one.figures != other.figures
    assert fingerprint(one) == fingerprint(other)
    assert figures_fingerprint(one) != figures_fingerprint(other)


@pytest.mark.parametrize("name", ["launch/slurm.py", "cli.py", "schema.py", "page/write.py"])
def test_what_no_row_comes_from_leaves_a_study_finished(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mi_ray.store.manifest, "PROGRAM", tmp_path)
    source = tmp_path / name
    source.parent.mkdir(exist_ok=True)
    source.write_text("# a program\n")
    before = fingerprint(same())
    source.write_text("# changed\n")
    assert fingerprint(same()) == before


def test_a_dataset_without_files_does_not_depend_on_the_default_folder_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    digits, cifar10 = (same(dataset=name) for name in ("digits", "cifar10"))
    before = fingerprint(digits), fingerprint(cifar10)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/unrelated").write_text("a")
    assert fingerprint(digits) == before[0]
    assert fingerprint(cifar10) != before[1]


def test_the_commit_is_the_programs_own_and_not_that_of_a_repository_around_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("git") is None:
        pytest.skip("asks git for the last commit")
    installed = tmp_path / "project/.venv/mi_ray"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path / "project"), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=theirs"], check=True)
    monkeypatch.setattr(mi_ray.store.manifest, "PROGRAM", installed)
    assert provenance()["commit"] is None
    subprocess.run([*git, "add", "--force", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=ours"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", str(provenance()["commit"]))
