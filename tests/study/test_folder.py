"""What a study writes about itself for its readers."""

import json
from pathlib import Path

from helpers.studies import Tiny, tiny

import mi_ray
from mi_ray.attacks import ATTACKS
from mi_ray.defenses import DEFENSES
from mi_ray.figures.reading import read_study
from mi_ray.store.manifest import read_manifest
from mi_ray.study.folder import appearance, mark, write_study


def written(folder: Path) -> Tiny:
    """A study whose manifest is written, with no cell done."""
    one = tiny(folder)
    mark(one.store, one.study, one.plan, "running")
    return one


def test_every_registered_method_says_how_it_is_named_and_drawn_and_no_two_defenses_look_alike() -> None:
    found = json.loads(json.dumps(appearance()))
    assert list(found["defenses"]) == list(DEFENSES)
    assert list(found["attacks"]) == list(ATTACKS)
    looks = [look for name, look in found["defenses"].items() if DEFENSES[name].__module__.startswith("mi_ray.")]
    assert all(set(look) == {"label", "colour", "marker"} for look in looks)
    for key in ("label", "colour", "marker"):
        assert len({look[key] for look in looks}) == len(looks)
    drawn = (Path(mi_ray.__file__).parent / "page" / "charts.js").read_text(encoding="utf-8")
    for look in looks:  # The page draws a circle for a marker that it does not know.
        assert f'\n  {look["marker"]}: "M' in drawn or f'\n  "{look["marker"]}": "M' in drawn, look


def test_figures_find_in_a_studys_manifest_how_methods_are_drawn_while_it_runs_and_when_it_is_written(
    tmp_path: Path,
) -> None:
    one = written(tmp_path / "store")
    assert read_manifest(one.store, one.study.sweep.name)["appearance"] == appearance()
    write_study(one.store, one.study, one.plan, [], {})
    assert read_manifest(one.store, one.study.sweep.name)["appearance"] == appearance()
    _, names = read_study(one.store, one.study.sweep.name)
    assert names.defense("mi_combined") == "MI-Combined"
    assert names.look("gaussian_noise").colour == DEFENSES["gaussian_noise"].colour
