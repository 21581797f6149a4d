"""A person's own code: what it imports decides its results as well, and where it went wrong is told."""

import copy
import hashlib
import json
import re
import site
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.studies import Tiny
from helpers.sweeps import sweep

from mi_ray import own_code
from mi_ray.defenses import DEFENSES
from mi_ray.defenses.noise import GaussianNoise
from mi_ray.own_code import (
    INSTALLED,
    first_line,
    import_own,
    imported_sources,
    is_own,
    last_line,
    look_in,
    own_place,
    places_told,
    told_of,
)
from mi_ray.store.manifest import fingerprint
from mi_ray.study.prepare import prepare
from mi_ray.study.sources import as_imported, source_hash, syntax_of

FILES = {
    "my_roll.py": "import json\nimport torch, mi_ray\nfrom my_parts import zero\nfrom my_kit.deep import *\n",
    "my_parts.py": "import my_roll\nfrom my_more import one\ndef zero(): return one\n",
    "my_more.py": "one = 1\n",
    "my_other.py": "never = 'imported'\n",
    "my_kit/__init__.py": "",
    "my_kit/deep.py": "from . import near\nfrom .near import that\nfrom .. import nowhere\n",
    "my_kit/near.py": "that = 1\n",
    "my_kit/far.py": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules of a person's own, of which one imports others beside it."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_what_a_module_imports_of_its_own_folder_is_found_without_being_run(folder: Path) -> None:
    found = imported_sources("my_roll", folder / "my_roll.py")
    assert [str(path.relative_to(folder)) for path in found] == [
        "my_kit/__init__.py",
        "my_kit/deep.py",
        "my_kit/near.py",
        "my_more.py",
        "my_parts.py",
    ]
    assert imported_sources("my_kit.near", folder / "my_kit/near.py") == []


def test_what_is_no_python_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text("def (:")
    assert imported_sources("my_net", tmp_path / "my_net.py") == []


def test_of_an_installed_package_only_its_own_modules_count() -> None:
    file = Path(pytest.__file__)
    found = imported_sources("pytest", file)
    assert not is_own(str(file))
    assert all(path.is_relative_to(file.parent) for path in found)


def test_changing_a_module_that_another_imports_changes_what_decides_its_results(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "my_alone.py").write_text("alone = 1\n")
    (folder / "my_user.py").write_text("import my_more\n")
    alone, before = source_hash("my_alone"), source_hash("my_user")
    assert (
        alone == hashlib.sha256(syntax_of(folder / "my_alone.py").encode()).hexdigest()
    )  # as before there was this rule
    (folder / "my_more.py").write_text("one = 1  # said in a comment\n")
    assert source_hash("my_user") == before
    (folder / "my_more.py").write_text("one = 7\n")
    assert source_hash("my_user") != before
    assert source_hash("my_alone") == alone


def test_a_study_whose_plugins_neighbour_changed_is_looked_at_again(folder: Path) -> None:
    before = fingerprint(sweep(plugins=["my_roll"]))
    (folder / "my_other.py").write_text("never = 'imported, and changed'\n")
    assert fingerprint(sweep(plugins=["my_roll"])) == before
    (folder / "my_more.py").write_text("one = 7\n")
    assert fingerprint(sweep(plugins=["my_roll"])) != before


def test_an_error_is_told_with_its_place_in_a_persons_own_code(folder: Path) -> None:
    (folder / "my_fault.py").write_text("def fails():\n    return {}['key']\n")
    import my_fault  # type: ignore[import-not-found]

    with pytest.raises(KeyError) as told:
        my_fault.fails()
    assert own_place(told.value) == " (my_fault.py, line 2)"
    with pytest.raises(ValueError, match="invalid") as ours:
        int("x")
    assert own_place(ours.value).startswith(" (test_own_code.py")


def test_a_module_that_was_changed_since_it_was_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "my_changing.py"
    file.write_text("value = 1\n")
    before = as_imported("my_changing")
    file.write_text("value = 1  # a comment changes nothing\n")
    assert as_imported("my_changing") == before
    file.write_text("value = 2\n")  # This process has the old one.
    with pytest.raises(ValueError, match=r"my_changing.py was changed since this process imported it: begin a new one"):
        as_imported("my_changing")


def test_of_two_modules_of_one_name_neither_stands_for_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_code, "_OWN_FOLDERS", [])
    monkeypatch.setattr("sys.path", [*sys.path])
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_twin.py").write_text(f"value = {name == 'c'}\n")
    for name in "ab":  # equal ones
        look_in(tmp_path / name)
        assert Path(str(import_own("rule", "my_twin").__file__)).parent == tmp_path / "a"
    look_in(tmp_path / "c")
    with pytest.raises(
        ValueError, match=r"there are two called my_twin, .*a/my_twin.py and .*c/my_twin.py: rename one"
    ):
        import_own("rule", "my_twin")
    sys.modules.pop("my_twin")


def test_a_method_that_a_worker_cannot_import_is_refused_where_a_sweep_names_it_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one of a notebook's cells, whose code would be in no key, nor one whose file is gone."""
    monkeypatch.setattr(DEFENSES, "_classes", dict(DEFENSES._classes))
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "my_gone.py"
    file.write_text("")
    import_own("rule", "my_gone")
    file.unlink()
    for name, module in (("in_a_cell", "__main__"), ("in_no_file", "my_gone")):
        DEFENSES.register(type(name, (GaussianNoise,), {"name": name, "__module__": module}))
    sources = prepare(sweep()).planner.facts.sources
    assert {"in_a_cell", "in_no_file"} <= sources.keys()
    _, (handed,) = sources.__reduce__()  # what a search's trials get
    assert not {"in_a_cell", "in_no_file"} & handed.keys()
    with pytest.raises(ValueError, match="a method that is defined in the program itself or in a cell of a notebook"):
        prepare(sweep(defenses=[{"in_a_cell": 0.1}]))
    with pytest.raises(ValueError, match=r"must stay where it was imported from; .*my_gone\.py: No such file"):
        prepare(sweep(defenses=[{"in_no_file": 0.1}]))


def test_what_a_sweep_lets_be_looked_in_is_not_among_what_is_imported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers get the latter by PYTHONPATH, before Python's own modules, and the former after all that is installed."""
    monkeypatch.setattr(own_code, "_OWN_FOLDERS", [])
    monkeypatch.setattr("sys.path", [*sys.path])
    look_in(tmp_path)
    assert sys.path[-1] == str(tmp_path)
    assert str(tmp_path) not in own_code.imported_first()
    assert own_code.own_modules(["a"]) == own_code.OwnModules(("a",), (tmp_path,))


def _raises(*_: object) -> None:
    raise KeyError("b")


def test_an_error_from_another_process_tells_its_place_in_a_persons_own_code() -> None:
    with pytest.raises(KeyError) as ours:
        places_told(_raises)()
    there = copy.copy(ours.value)  # as it is unpickled elsewhere
    assert there.__traceback__ is None
    assert told_of(there) == f"KeyError: 'b' (test_own_code.py, line {_raises.__code__.co_firstlineno + 1})"
    with pytest.raises(ValueError, match="Expecting value") as theirs:
        places_told(json.loads)("")
    assert told_of(theirs.value) == "Expecting value: line 1 column 1 (char 0)"
    assert told_of(ValueError("first\nlast\n")) == "last"
    assert told_of(ValueError()) == "ValueError"


def test_a_block_that_a_persons_defense_ends_tells_where(original: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    (work, *_) = [work for work in original.plan.outputs if work.component is not None]
    monkeypatch.setattr(DEFENSES[work.component.name], "copies", _raises)  # type: ignore[union-attr]
    with pytest.raises(KeyError) as raised:
        original.bench.compute(replace(work, draws=work.draws + 1), 0, 20)
    assert re.fullmatch(r"KeyError: 'b' \(test_own_code\.py, line \d+\)", told_of(raised.value))


def test_a_name_that_two_kinds_of_plugin_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs(GaussianNoise):
        name = "pgd"  # as one of the attacks is called

    monkeypatch.setitem(DEFENSES._classes, "pgd", Theirs)
    with pytest.raises(ValueError, match=r"a plugin's name must be of one thing alone, .*'pgd' is also another"):
        prepare(sweep())


def test_a_factory_within_a_defense_that_was_changed_since_it_was_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "import torch\nclass Den(torch.nn.Module):\n    def forward(self, x):\n        return x * {}\n"
    (tmp_path / "my_den_of_a_test.py").write_text(text.format("1.0"))
    made = sweep(defenses=[{"purify": {"factory": "my_den_of_a_test:Den", "noise": 0.1}}])
    prepare(made)
    prepare(made)
    (tmp_path / "my_den_of_a_test.py").write_text(text.format("0.5"))
    with pytest.raises(ValueError, match="my_den_of_a_test"):
        prepare(made)


def test_what_is_installed_for_one_user_is_nobodys_own_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(own_code, "INSTALLED", {str(tmp_path / "packages")})
    for place in ("packages/torch", "mine"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.py").write_text("")
    assert not is_own(str(tmp_path / "packages/torch/a.py"))
    assert is_own(str(tmp_path / "mine/a.py"))
    assert site.getusersitepackages() in INSTALLED


@pytest.mark.parametrize(
    ("text", "first", "last"), [("", "OSError", "OSError"), ("\n a\n\n b \n", "a", "b"), (" \n", "OSError", "OSError")]
)
def test_an_error_is_told_by_one_line_also_where_it_says_nothing(text: str, first: str, last: str) -> None:
    assert (first_line(OSError(text)), last_line(OSError(text))) == (first, last)


LOOKING = """
from mi_ray.defenses import DEFENSES

@DEFENSES.register
class Mine:
    name = "mine"
    label{annotation} = {label}
    colour = "teal"
    strength = {strength}

class Beside:
    label = {beside}
"""


def test_how_figures_draw_a_method_is_in_no_key_and_all_else_is(tmp_path: Path) -> None:
    def said(label: str = "'Mine'", strength: str = "1", beside: str = "'a'", annotation: str = "") -> str:
        text = LOOKING.format(label=label, strength=strength, beside=beside, annotation=annotation)
        (tmp_path / "looking.py").write_text(text)
        return syntax_of(tmp_path / "looking.py")

    assert said() == said("'My own'") == said("'My own'", annotation=": str")
    assert len({said(), said(strength="2"), said(beside="'b'"), said("make()"), said("other()")}) == 5
    text = LOOKING.replace("DEFENSES", "ATTACKS").format(label="{}", strength=1, beside="'a'", annotation="")
    found = set()
    for label in (3, 7):  # An attack may mean something by it.
        (tmp_path / "looking.py").write_text(text.format(label))
        found.add(syntax_of(tmp_path / "looking.py"))
    assert len(found) == 2


def test_that_an_attack_returns_only_what_it_has_found_can_be_said_without_attacking_again(tmp_path: Path) -> None:
    """A check's remedy asks for it when the attack has been made."""
    attack = "from mi_ray.attacks import ATTACKS\n\n@ATTACKS.register\nclass Mine:\n    name = 'mine'\n"
    found = set()
    for said in ("", "    only_found = True\n", "    only_found: bool = False\n"):
        (tmp_path / "finding.py").write_text(attack + said)
        found.add(syntax_of(tmp_path / "finding.py"))
    assert len(found) == 1
