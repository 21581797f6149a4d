"""A finished study is recognised from hashes alone, and only while nothing that it came from or left has changed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import DEFENSE_GRID, TINY, Tiny, finish, tiny
from helpers.sweeps import sweep

import mi_ray.store.manifest
from mi_ray.config import Sweep
from mi_ray.store.blocks import Store
from mi_ray.store.manifest import fingerprint, inventory, is_finished


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A finished study; read only."""
    one = tiny(tmp_path_factory.mktemp("quick"), defenses=DEFENSE_GRID[:1])
    finish(one)
    return one


@pytest.fixture
def store(original: Tiny, tmp_path: Path) -> Store:
    """A copy that a test may damage."""
    return Store(shutil.copytree(original.store.root, tmp_path / "store"))


def same(**changes: Any) -> Sweep:
    return sweep(**{**TINY, "defenses": DEFENSE_GRID[:1], **changes})


def test_a_finished_study_is_recognised(store: Store) -> None:
    assert is_finished(same(), store.root)


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
    assert not is_finished(same(**changes), store.root)


@pytest.mark.parametrize("kind", ["classifiers", "adversarial", "outputs", "records"])
def test_a_lost_or_shortened_file_is_noticed(store: Store, kind: str) -> None:
    path = Path(store.root) / next(iter(store.files(kind)))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert not is_finished(same(), store.root)
    path.write_bytes(content)
    assert is_finished(same(), store.root)
    path.unlink()
    assert not is_finished(same(), store.root)


def test_results_of_other_studies_do_not_matter(store: Store) -> None:
    store.write_bytes("outputs/foreign/points-00000-00020.parquet", b"x")
    assert is_finished(same(), store.root)


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
        assert not is_finished(same(), store.root)
    store.write_bytes(path, b"{")
    assert not is_finished(same(), store.root)
    assert not is_finished(same(), str(tmp_path / "nowhere"))
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
    store.write_bytes("studies/tiny/figures/fig3b.png", b"1")
    drawn = inventory(store, "tiny", keys)
    assert drawn != before
    store.write_bytes("outputs/a/f", b"12")
    assert inventory(store, "tiny", keys) not in (before, drawn)
