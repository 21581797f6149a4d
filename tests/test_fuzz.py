"""Sweep files and stores that are mutated at random give a plan or rows, or one line: never a traceback, never another
program's words, and nothing outside their folder."""

import copy
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.bad_inputs import FOREIGN, SWEEP
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import mi_ray.data
from mi_ray.page.write import make as make_page
from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store
from mi_ray.store.compact import compact
from mi_ray.store.files import SELF, self_hash
from mi_ray.store.manifest import overviews, study_state, unreferenced
from mi_ray.store.read import read_cells, read_records
from mi_ray.study.prepare import prepare
from mi_ray.sweep_files import load_sweep

SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))  # of each of the three tests a third
EXAMPLES = 1_000_000
RICH: dict[str, Any] = {
    **SWEEP,
    "preset": "as_published",
    "options": {"eight_bit": True, "draws": 2},
    "points": {"count": 40, "selection": 10, "order": "first"},
    "classifiers": [
        {"name": "f", "architecture": {"cnn_small": {"width": 2}}, "objective": {"mixup": {"alpha": 1.0}}, "seed": 3},
        {"name": "g", "architecture": "cnn_small", "training": {"epochs": 2, "lr": 0.1, "flip": False}, "workers": 2},
    ],
    "attacks": [
        {
            "pgd": {"steps": [1, 2], "step_size": "2/255", "restarts": 1},
            "epsilon": ["8/255", 0.1],
            "goal": ["untargeted", "targeted"],
        },
        {"eot_pgd": {"steps": 1}, "epsilon": 0.1, "knowledge": "adaptive", "defenses": ["mi_ol"], "classifiers": ["f"]},
        {"cascade": {}, "epsilon": 0.1, "images": [{"pgd": {"steps": 1}, "classifier": "g"}]},
    ],
    "defenses": [
        "none",
        {"gaussian_noise": {"sigma": {"linspace": [0.1, 0.2, 2]}}},
        {"mi_ol": {"lam": [0.5, {"beta": [1, 1]}]}, "classifiers": ["f"]},
        {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.5, "threshold": {"arange": [0.1, 0.3, 0.1]}}},
        {"random_pad": {"crop": [28, 30]}},
    ],
    "executions": [1, 5],
    "checks": {"level": "subset", "points": 20},
    "variants": {"v": {"draws": 1}},
    "resources": {"block": {"points": 20, "cpus": 1, "memory_budget": "2 GiB"}, "train": {"cpus": 1}},
    "figures": ["fig3b"],
    "smoke": {"points": {"count": 20}},
}
ODD = [
    None,
    True,
    0,
    -1,
    1,
    2.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**70,
    "",
    "x",
    "8/255",
    "1/0",
    "none",
    "pgd",
    "é\n",
    "a" * 500,
]
ODD += [
    [],
    {},
    [[]],
    [None],
    [1, 1],
    {"linspace": [0, 1, 2]},
    {"beta": [0, 0]},
    {"": 1},
    {1: 2},
    ["f", "f"],
    {"pgd": None},
    {"x": {"y": {}}},
]


def paths(node: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value of a document."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in inner for place in ((*above, key), *paths(value, (*above, key)))]


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def mutate(draw: st.DrawFn, document: Any) -> None:
    """Change one place of a document."""
    every = paths(document)
    path = draw(st.sampled_from(every))
    above, key = at(document, path[:-1]), path[-1]
    how = draw(st.sampled_from(["odd", "odd", "drop", "other", "wrap", "rename", "twice"]))
    if how == "drop":
        del above[key]
    elif how == "rename" and isinstance(above, dict):
        above[draw(st.sampled_from(["x", f"{key}s", str(key)[:-1] or "y", "pgd", "points"]))] = above.pop(key)
    elif how == "twice" and isinstance(above, list):
        above.append(copy.deepcopy(above[key]))
    elif how == "wrap":
        above[key] = draw(st.sampled_from([[above[key]], {"x": above[key]}, str(above[key])]))
    elif how == "other":
        above[key] = copy.deepcopy(at(document, draw(st.sampled_from(every)))) if len(every) > 1 else 3
    else:
        above[key] = copy.deepcopy(draw(st.sampled_from(ODD)))  # The next mutation may change what is inside.


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A sweep with one to four mutations."""
    document = copy.deepcopy(RICH)
    for _ in range(draw(st.integers(1, 4))):
        if paths(document):
            mutate(draw, document)
    return document


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A sweep file in which a few characters or lines are lost, doubled or put in."""
    text = yaml.safe_dump(SWEEP, sort_keys=False)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(text) - 1)))
        end = place + draw(st.integers(0, 12))
        put = draw(
            st.sampled_from(
                [
                    "",
                    "\n",
                    " ",
                    ":",
                    "- ",
                    "[",
                    "]",
                    "{",
                    "}",
                    "'",
                    '"',
                    "&a ",
                    "*a",
                    "!x ",
                    "#",
                    "\t",
                    "0",
                    "-",
                    "%",
                    "é",
                    "\x07",
                ]
            )
        )
        text = text[:place] + put + text[draw(st.sampled_from([place, end])) :]
    return text


@lru_cache(maxsize=1)
def digits() -> Any:
    return mi_ray.data.Digits().load()


def plan_or_line(source: Any) -> None:
    """Plan a sweep, smoke or not; whatever is wrong with it must be a ValueError of one short line."""
    for smoke in (False, True):
        try:
            plan = prepare(load_sweep(source, smoke=smoke)).plan()
        except ValueError as error:
            said = str(error)
            assert said.strip()
            assert "\n" not in said, said
            assert re.search(FOREIGN, said) is None, said
            assert len(said) < 1200, said
        else:
            assert plan.cells


BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[*HealthCheck],
    print_blob=False,
)


def until(end: float, step: Callable[[st.DataObject], None]) -> int:
    """Examples until the time is up; returns how many there were."""
    done = 0

    @BOUNDED
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        nonlocal done
        if time.monotonic() > end:
            raise KeyboardInterrupt  # Hypothesis takes any Exception for a finding.
        step(data)
        done += 1

    with pytest.raises(KeyboardInterrupt):
        tried()
    return done


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("kind", ["documents", "texts"])
def test_a_mutated_sweep_gives_a_plan_or_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    found = digits()
    monkeypatch.setattr(mi_ray.data.Digits, "load", lambda self: found)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "sweep.yaml"

    def step(data: st.DataObject) -> None:
        if kind == "documents":
            plan_or_line(data.draw(documents()))
        else:
            file.write_text(data.draw(texts()), encoding="utf-8")
            plan_or_line(file)

    assert until(time.monotonic() + SECONDS / 3, step) > SECONDS / 30


def hostile(draw: st.DrawFn, content: bytes, others: list[bytes]) -> bytes:
    """A file as somebody who means ill, or a bad disk, would leave it: JSON with another value has the hash that fits it."""
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict) and draw(st.booleans()):
        mutate(draw, document)
        document[SELF] = self_hash(document)
        return json.dumps(document).encode()
    how = draw(st.sampled_from(["flip", "flip", "cut", "longer", "other", "zeros"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "flip" and content:
        return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
    if how == "other":
        return draw(st.sampled_from(others))
    return {"cut": content[:place], "longer": content + content[place:], "zeros": bytes(len(content))}.get(how, b"")


def looks(store: Path, sweep: Any) -> list[Callable[[], object]]:
    """What the verbs that read a store do with it."""
    return [
        lambda: overviews(Store(store)),
        lambda: check_store(Store(store)),
        lambda: unreferenced(Store(store)),
        lambda: study_state(sweep, str(store)),
        lambda: read_cells(store, "tiny"),
        lambda: read_records(store, "tiny"),
        lambda: read_records(store),
        lambda: make_page(Store(store), "tiny"),
        lambda: compact(Store(store)),
    ]


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 600)
def test_a_mutated_store_gives_rows_or_one_line_and_nothing_outside_of_it(
    original: Any, tmp_path: Path, unchecked: None
) -> None:
    whole = {path: original.store.read_bytes(path) for path in original.store.files("")}
    store, sweep = tmp_path / "in" / "results", original.study.sweep

    def step(data: st.DataObject) -> None:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(original.store.root, store)
        for _ in range(data.draw(st.integers(1, 3))):
            path = data.draw(st.sampled_from(sorted(whole)))
            (store / path).write_bytes(hostile(data.draw, whole[path], list(whole.values())))
        look = data.draw(st.sampled_from(looks(store, sweep)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                look()
        except (ValueError, OSError) as error:  # what `main` tells in a line
            assert str(error).strip()
        assert [path.name for folder in (tmp_path, store.parent) for path in folder.iterdir()] == ["in", "results"]

    assert until(time.monotonic() + SECONDS / 3, step) > SECONDS / 30
