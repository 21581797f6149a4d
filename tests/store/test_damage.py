"""Damage of every kind to every file that a study holds: found by `mi-ray check`, made again by `mi-ray sweep`, never
read as data. One run of the real command line mends a store in which nearly everything is damaged at once."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.commands import TINY as STUDY
from helpers.commands import assert_same_rows, rows, run
from helpers.studies import ONE_GRID, TINY, Tiny, finish, problems_in, tiny
from helpers.sweeps import document

import mi_ray.cli
from mi_ray.classifiers import load_classifier
from mi_ray.store.blocks import Store
from mi_ray.store.compact import compact
from mi_ray.store.files import DamagedFileError
from mi_ray.store.locks import LOCK_EVERY, holder, lock_study, locked
from mi_ray.store.manifest import overviews, study_state
from mi_ray.store.read import read_cells, read_records

Damage = Callable[[bytes], bytes]
ONE_ATTACK = [{"pgd": {"steps": [1], "step_size": 0.05}, "epsilon": 0.1}]


def flipped(content: bytes) -> bytes:
    """One bit of what is read, the size as before: the footer of a small Parquet file holds much that nobody reads."""
    changed = bytearray(content)
    changed[min(40, len(changed) // 4)] ^= 1
    return bytes(changed)


def other_schema(content: bytes) -> bytes:
    """A sound file of its kind that holds something else."""
    if content[:4] != b"PAR1":
        return b'{"a": 1}'
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    return sink.getvalue().to_pybytes()


DAMAGES: dict[str, Damage] = {
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": flipped,
    "empty": lambda content: b"",
    "other schema": other_schema,
}
PLACES = {
    "weights": "classifiers/*/model.safetensors",
    "description": "classifiers/*/classifier.json",
    "training": "classifiers/*/training.parquet",
    "adversarial": "adversarial/*/*.parquet",
    "outputs": "outputs/*/*.parquet",
    "records": "records/*/*.parquet",
    "cells": "studies/tiny/cells.parquet",
    "manifest": "studies/tiny/manifest.json",
    "study": "studies/tiny/study.yaml",
    "examples": "studies/tiny/examples.parquet",
    "keys": "studies/tiny/keys.parquet",
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A study of which one file at a time is damaged, and put back: with few files, since each check reads all of them."""
    few: dict[str, Any] = {"points": {"count": 20}, "executions": 1, "draws": 1, "attacks": ONE_ATTACK}
    one = tiny(tmp_path_factory.mktemp("damaged") / "store", **ONE_GRID, **few)
    finish(one)
    assert problems_in(one.store) == []
    return one.store


@pytest.mark.parametrize("kind", PLACES)
def test_a_damaged_file_is_named_by_check_and_never_read_as_data(damaged: Store, kind: str) -> None:
    path = next(iter(sorted(Path(damaged.root).glob(PLACES[kind]))))
    whole = path.read_bytes()
    try:
        for damage, change in DAMAGES.items():
            path.write_bytes(change(whole))
            assert_damaged(damaged, kind, path, damage)
    finally:
        path.write_bytes(whole)


def assert_damaged(damaged: Store, kind: str, path: Path, damage: str) -> None:
    """Check names the file and each reader of its kind refuses it."""
    problems = problems_in(damaged)
    assert any(path.name in problem for problem in problems), (damage, problems)
    if kind in ("weights", "description"):
        with pytest.raises(ValueError, match=r"classifier.json|must be a safetensors file"):
            load_classifier(path.parent)
    if kind == "records":
        with pytest.raises(DamagedFileError):
            read_records(damaged.root)
    if kind == "cells":
        with pytest.raises(DamagedFileError):
            read_cells(damaged.root)
    if kind == "manifest":
        assert overviews(damaged)[0][1] == "damaged"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The console script's function; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["mi-ray", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stopped:
        mi_ray.cli.main()
    return int(stopped.value.code or 0)


def own_sweep() -> Any:
    from helpers.sweeps import sweep

    return sweep(**{**TINY, **ONE_GRID})


@pytest.mark.parametrize("kind", [*PLACES])
def test_check_lets_the_next_sweep_look_at_a_study_again_in_which_one_bit_is_flipped(
    original: Tiny, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(shutil.copytree(original.store.root, tmp_path / "store"))
    path = next(iter(sorted(Path(store.root).glob(PLACES[kind]))))
    assert study_state(own_sweep(), store.root) == "finished"
    path.write_bytes(flipped(path.read_bytes()))
    # A flipped bit leaves sizes as they were, and a sweep reads no file but the manifest.
    assert study_state(own_sweep(), store.root) == ("open" if kind == "manifest" else "finished")
    assert call(monkeypatch, "check", store.root) == 1
    assert study_state(own_sweep(), store.root) == "open"


def test_check_repair_removes_what_no_digest_tells_from_sound(
    original: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(shutil.copytree(original.store.root, tmp_path / "store"))
    key = original.work().key
    block = store.blocks("outputs", key)[0]
    table, facts = store.read_block("outputs", key, block)
    wrong = table.set_column(3, table.schema.field(3), pa.array([[0.5] * 10] * len(table), table.schema.field(3).type))
    store.write_block("outputs", key, block.start, block.stop, wrong, facts)
    assert call(monkeypatch, "check", store.root, "--repair") == 1
    assert not store.exists(block.path)
    one = tiny(Path(store.root), **ONE_GRID)
    finish(one)
    assert call(monkeypatch, "check", store.root) == 0


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(560)
def test_one_sweep_mends_a_study_of_which_nearly_every_file_is_damaged(undisturbed: Path, tmp_path: Path) -> None:
    results = Path(shutil.copytree(undisturbed / "results", tmp_path / "results"))
    places = {**PLACES, "figures": "studies/tiny/figures/*"}
    hit: list[Path] = []
    for number, pattern in enumerate(places.values()):
        files = sorted(results.glob(pattern))
        for turn, path in enumerate(files[:1] if "classifiers" in pattern else files[::2]):
            # Files of the same kind get different damages; those of classifiers are of one, since each costs a training.
            path.write_bytes(list(DAMAGES.values())[(number + turn) % len(DAMAGES)](path.read_bytes()))
            hit.append(path)
    assert len(hit) > 40
    problems = problems_in(Store(results))
    told = [path for path in hit if path.parent.name not in ("tiny", "figures") or path.name == "manifest.json"]
    assert all(any(path.name in problem for problem in problems) for path in told)  # the study's own: see above
    done = run(tmp_path, STUDY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_rows(rows(tmp_path), rows(undisturbed))
    assert problems_in(Store(results)) == []
    assert {path.name for path in results.rglob("*.*")} == {
        path.name for path in (undisturbed / "results").rglob("*.*")
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_a_study_with_its_cause_and_no_temporary_file_and_room_lets_it_go_on(
    small_disk: Path, original: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tiny(small_disk / "results", **ONE_GRID)
    free = os.statvfs(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 150_000))
    with pytest.raises(OSError, match="No space left on device") as stopped:
        finish(one)
    assert stopped.value.errno == errno.ENOSPC
    assert not list(small_disk.rglob(".*"))
    room = os.statvfs(small_disk)
    (small_disk / "rest").write_bytes(b"x" * (room.f_bavail * room.f_frsize))
    (small_disk / "sweep.yaml").symlink_to("/dev/null")
    monkeypatch.setattr("mi_ray.run.run_sweeps", lambda *_, **named: one.store.write_bytes("a", b"x" * 10_000))
    assert call(monkeypatch, "sweep", str(small_disk / "sweep.yaml")) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "reading or writing must be possible and have room" in said[0]
    assert "No space left on device" in said[0]
    for path in (filler, small_disk / "rest"):
        path.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    finish(one)
    assert len(read_records(one.store, "tiny")) == len(read_records(original.store, "tiny"))
    assert problems_in(one.store) == []


HOLD = """
import sys, time
from pathlib import Path
from mi_ray.store.locks import locked
with locked(Path(sys.argv[1]), print, shared=len(sys.argv) > 2):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path, *more: str) -> subprocess.Popen[str]:
    """A process that holds a lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def closed(process: subprocess.Popen[str]) -> None:
    """End a process and what is open of it."""
    process.kill()
    process.communicate()


def test_a_lock_is_waited_for_its_holder_named_and_a_dead_holders_lock_is_free(tmp_path: Path) -> None:
    path, told = tmp_path / ".lock", list[str]()
    other = hold(path)

    def waiting(who: str) -> None:
        told.append(who)
        closed(other)  # killed: its file stays, its lock does not

    with locked(path, waiting) as held:
        assert held
        assert f"process {os.getpid()} on " in holder(path)
    assert len(told) == 1
    assert told[0].startswith(f"process {other.pid} on ")
    assert not path.exists()


def test_a_shared_lock_lets_others_share_and_keeps_who_wants_it_alone_waiting(tmp_path: Path) -> None:
    path, told = tmp_path / ".lock", list[str]()
    other = hold(path, "shared")
    with locked(path, told.append, shared=True):
        pass
    assert told == []
    assert path.exists()  # the other still has it
    alone = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert alone.stdout is not None
    assert alone.stdout.readline().startswith(f"process {other.pid} on ")
    closed(other)
    assert alone.stdout.readline() == "held\n"
    closed(alone)


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None], seconds: float) -> None:
    """Let something happen while the program waits for that many seconds, in place of the first wait."""
    slept, done = time.sleep, list[bool]()

    def sleep(wanted: float) -> None:
        if wanted == seconds and not done:
            done.append(True)
            happens()
        else:
            slept(wanted)

    monkeypatch.setattr(time, "sleep", sleep)


def test_a_second_sweep_of_a_study_waits_says_for_whom_and_then_finds_it_finished(
    original: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Path(shutil.copytree(original.store.root, tmp_path / "results"))
    store, path = Store(results), "studies/tiny/manifest.json"
    sealed = store.read_json(path)
    store.write_json(path, {**sealed, "state": "running"})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(document(**{**TINY, **ONE_GRID})))
    first = hold(results / ".study-tiny.lock")

    def first_one_ends() -> None:
        store.write_json(path, sealed)
        closed(first)

    meanwhile(monkeypatch, first_one_ends, LOCK_EVERY)
    code = call(monkeypatch, "sweep", str(tmp_path / "sweep.yaml"), "--out", str(results))
    said = capsys.readouterr().out
    assert said.startswith(f"tiny: waiting for process {first.pid} on ")
    assert str(results) in said.splitlines()[0]
    assert "tiny: finished already, nothing to compute" in said
    assert code == 0
    assert not list(results.glob(".*"))


@pytest.mark.parametrize(("ending", "code"), [("complete", 0), ("incomplete", 1), ("trained", 1), ("attacked", 1)])
def test_status_watches_until_every_study_has_ended_and_says_whether_all_are_complete(
    original: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: str,
    code: int,
) -> None:
    store = Store(shutil.copytree(original.store.root, tmp_path / "results"))
    path = "studies/tiny/manifest.json"
    manifest = store.read_json(path)
    store.write_json(path, {**manifest, "state": "running"})
    meanwhile(monkeypatch, lambda: store.write_json(path, {**manifest, "state": ending}), 0.125)
    with lock_study(store, "tiny", print):  # A study that nobody runs has ended, whatever its manifest says.
        assert call(monkeypatch, "status", store.root, "--watch", "--every", "0.125") == code
    said = capsys.readouterr().out
    assert re.search(rf"tiny\s+{ending}\b", said), said


def test_compacted_records_that_check_repairs_are_dropped_with_their_row_group_alone(
    original: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(shutil.copytree(original.store.root, tmp_path / "store"))
    compact(store)
    part = Path(store.root) / next(iter(store.files("records")))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert call(monkeypatch, "check", store.root, "--repair") == 1
    one = tiny(Path(store.root), **ONE_GRID)
    finish(one)
    assert call(monkeypatch, "check", store.root) == 0
    assert len(read_records(store.root, "tiny")) == len(read_records(original.store, "tiny"))
