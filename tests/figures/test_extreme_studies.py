"""A study of real images may have cells at exactly 0 % and 100 %, and then every figure of it must be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.extreme import write_extreme_study

from mi_ray.figures import paper_table
from mi_ray.figures.draw import draw, known_figures
from mi_ray.figures.script import script
from mi_ray.store.blocks import Store

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("clean", "attacked", "points"),
    # Both ends together, on a single point: one of them alone has no error bar that these have not.
    [(True, False, 1), *(pytest.param(end, end, 2, marks=pytest.mark.long) for end in (False, True))],
)
def test_every_figure_of_a_study_at_0_or_100_percent_is_drawn(
    tmp_path: Path, clean: bool, attacked: bool, points: int
) -> None:
    store = Store(tmp_path / "results", create=True)
    write_extreme_study(store, clean=clean, attacked=attacked, points=points)
    drawn = draw(store, "s", [name for name in known_figures() if name != "certified_accuracy"])  # It is of no cells.
    assert drawn.failures == {}
    assert {Path(path).suffix for path in drawn.paths} == {".png", ".pdf", ".csv", ".md", ".tex"}
    assert all(store.read_bytes(path) for path in drawn.paths)


def test_a_script_draws_its_table_from_any_folder_and_prints_the_paths(tmp_path: Path) -> None:
    write_extreme_study(Store(tmp_path / "results", create=True), clean=True, attacked=False)
    command = [sys.executable, str(ROOT / "analysis/paper_table.py"), "results", "s"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    paths = found.stdout.splitlines()
    assert paths == [f"results/studies/s/figures/paper_table.{kind}" for kind in ("md", "csv", "tex")]
    assert all((tmp_path / path).is_file() for path in paths)


def test_a_script_tells_what_it_cannot_draw_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_extreme_study(Store(tmp_path / "results", create=True), clean=True, attacked=False)
    for arguments, said in (
        (["results", "none"], "error: study 'none' must be in "),
        (["nowhere", "s"], "error: a store must be a folder that mi-ray made; nowhere is not there"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["paper_table.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            script(paper_table.make)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith(said)
