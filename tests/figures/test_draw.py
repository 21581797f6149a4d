"""Figures are found by name, and one that fails takes no other with it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers.frames import cell

from mi_ray.figures.draw import Drawn, draw, find_figure, known_figures
from mi_ray.plugins import new_plugin
from mi_ray.store.blocks import Store
from mi_ray.store.read import write_cells

RETURNS = (
    "TypeError: make(store, study) must return a list of the paths that it wrote, each a text within the store, such as "
    "'studies/NAME/figures/mine.png'; got"
)
OWN = """
def make(store, study):
    {body}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "results", create=True)
    rows = [cell("mixup", "none", {}, attack, 0.9, executions=1) for attack in ("none", "pgd")]
    write_cells(store, "s", pd.DataFrame(rows).to_dict("records"))
    return store


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package in which a person's own figures lie."""
    folder = tmp_path / "my_figures"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "my_figures"]:
        del sys.modules[name]


def test_ours_are_the_modules_that_make_something() -> None:
    assert {"fig2", "fig3a", "fig3b", "fig4", "fig5", "table2", "table3", "frontier_table"} <= set(known_figures())
    assert {"draw", "terminal", "__init__"}.isdisjoint(known_figures())


def test_every_figure_has_its_script() -> None:
    scripts = {file.stem for file in (Path(__file__).parents[2] / "analysis").glob("*.py")}
    assert scripts == {*known_figures(), "claims"}  # Claims are decided over several studies, by a file of their own.
    assert find_figure("fig3b") == "mi_ray.figures.fig3b"


@pytest.mark.parametrize("name", ["draw", "fig99", "no.such_module", "json.tool", "mi_ray.figures.draw", "a..b"])
def test_what_makes_nothing_is_no_figure(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"figures must be .*fig3b.*importable modules with|figures must be importable"
    ):
        find_figure(name)


def test_a_new_figure_lies_beside_the_sweep_and_is_drawn_as_it_is_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (written,) = new_plugin("figure", "my_accuracies", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert written.name == "my_accuracies.py"
    found = draw(store, "s", ["my_accuracies"])
    del sys.modules["my_accuracies"]
    assert not found.failures
    assert {path.rpartition("/")[2] for path in found.paths} == {
        f"my_accuracies.{kind}" for kind in ("png", "pdf", "csv")
    }


def test_a_figure_is_held_to_how_it_is_called_and_not_to_what_is_within_it(own: Path) -> None:
    wrapped = (
        "import functools\ndef dpi(made):\n    @functools.wraps(made)\n    def make(store, study):\n"
        "        return made(store, study, 9)\n    return make\n"
    )
    (own / "wrapped.py").write_text(f"{wrapped}@dpi\ndef make(store, study, dpi): return []\n")
    (own / "unknown.py").write_text("make = dict\n")  # whose signature Python does not know
    (own / "single.py").write_text("def make(study): return []\n")
    assert [find_figure(f"my_figures.{name}") for name in ("wrapped", "unknown")]
    with pytest.raises(ValueError, match=r"make\(store, study\); 'my_figures.single' is not: TypeError: too many"):
        find_figure("my_figures.single")


def test_a_persons_module_that_cannot_be_imported_says_why(own: Path) -> None:
    (own / "broken.py").write_text("import no_such_package_of_mine\ndef make(store, study): ...\n")
    with pytest.raises(ValueError, match=r"my_figures\.broken.*ModuleNotFoundError: No module named 'no_such_package"):
        find_figure("my_figures.broken")
    (own / "exits.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(ValueError, match=r"my_figures\.exits' is not: SystemExit: 0"):
        find_figure("my_figures.exits")


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("raise RuntimeError('no ink')", "RuntimeError: no ink (bad.py, line 3)"),
        ("return [][1]", "IndexError: list index out of range (bad.py, line 3)"),
        ("raise SystemExit('bye')", "SystemExit: bye (bad.py, line 3)"),
        ("return None", f"{RETURNS} None"),
        ("return 'a.png'", f"{RETURNS} 'a.png'"),
        (
            "return ['a.png']",
            "FileNotFoundError: make(store, study) must return paths within the store; the store has no a.png",
        ),
        ("return [1]", f"{RETURNS} [1]"),
    ],
)
def test_a_figure_that_fails_is_named_with_its_cause_and_the_others_are_drawn(
    store: Store, own: Path, body: str, cause: str
) -> None:
    (own / "bad.py").write_text(OWN.format(body=body))
    (own / "good.py").write_text(OWN.format(body="store.write_bytes('x', b'1'); return ['x']"))
    found = draw(store, "s", ["my_figures.bad", "paper_table", "fig4", "my_figures.good"])
    tables = [f"studies/s/figures/paper_table.{kind}" for kind in ("md", "csv", "tex")]
    assert found.paths == (*tables, "x")
    assert list(found.failures) == ["my_figures.bad", "fig4"]
    assert found.failures["my_figures.bad"] == cause
    assert found.failures["fig4"].startswith("ValueError: Fig. 4 needs finished cells of an adaptive attack")
    assert all(store.exists(path) for path in found.paths)


def test_ctrl_c_ends_all_figures(store: Store, own: Path) -> None:
    (own / "stopped.py").write_text(OWN.format(body="raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        draw(store, "s", ["my_figures.stopped", "paper_table"])
    assert not store.exists("studies/s/figures/paper_table.md")


def test_a_figure_that_is_not_there_any_more_is_a_failure_and_a_study_that_is_not_is_an_error(store: Store) -> None:
    assert draw(store, "s", []) == Drawn((), {})
    assert "figures must be" in draw(store, "s", ["fig99"]).failures["fig99"]
    with pytest.raises(ValueError, match="study 'other' must be in"):
        draw(store, "other", ["fig3b"])
