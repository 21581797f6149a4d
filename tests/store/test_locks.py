"""Locks of a store on a disk: who waits for whom."""

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import mi_ray.store.locks
from mi_ray.store.blocks import Store
from mi_ray.store.locks import LOCK_EVERY, lock_key, lock_store, lock_trainings, locked


def test_one_process_at_a_time_trains_a_classifier(tmp_path: Path) -> None:
    store, order, told = Store(tmp_path, create=True), list[str](), list[str]()

    def other() -> None:
        with lock_trainings(store, ["b", "a"], told.append):
            order.append("second")

    waiting = threading.Thread(target=other)
    with lock_trainings(store, ["a", "c"], told.append) as give_back:
        waiting.start()
        while not told:
            time.sleep(0.01)
        order.append("first")
        give_back("a")
        waiting.join(30)  # The other one is trained still.
        assert order == ["first", "second"]
    assert "which trains in" in told[0]
    assert not list(tmp_path.glob(".classifier-*"))


def test_who_removes_a_folder_with_a_lock_that_it_holds_takes_no_others_lock_away(tmp_path: Path) -> None:
    place, told = tmp_path / "compacted" / ".lock", list[str]()
    with locked(place, told.append):
        shutil.rmtree(place.parent)
        other = locked(place, told.append)
        other.__enter__()
    try:
        assert place.exists()  # of the other one, whom whoever comes now waits for
        descriptor = os.open(place, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    finally:
        other.__exit__(None, None, None)
    assert (told, place.exists()) == ([], False)


@pytest.mark.parametrize("command", [["gc", "--yes"], ["check", "--repair"], ["compact"]])
def test_what_removes_files_waits_for_the_sweeps_of_a_store(
    tmp_path: Path, command: list[str], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, waited = Store(tmp_path, create=True), list[float]()
    name, *options = command
    with contextlib.ExitStack() as sweeping:
        sweeping.enter_context(lock_store(store, lambda _: None))

        def sleep(seconds: float) -> None:
            """The sweep ends while the program waits for it: a lock of one process is not held by the same one elsewhere."""
            waited.append(seconds)
            sweeping.close()

        monkeypatch.setattr(time, "sleep", sleep)
        code, said, _ = run(name, str(tmp_path), *options)
    assert (code, waited) == (0, [LOCK_EVERY])
    assert said.startswith("waiting for process")


def test_no_file_stays_of_a_lock_where_the_file_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    store = Store(tmp_path, create=True)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with lock_key(store, "key"):
            pass
    assert not list(tmp_path.glob(".key-*"))


def test_a_lock_whose_file_is_taken_away_meanwhile_is_taken_on_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = iter([False, True])
    monkeypatch.setattr(mi_ray.store.locks, "_same_file", lambda descriptor, path: next(same))
    found = mi_ray.store.locks._acquired(tmp_path / "lock", lambda who: None, fcntl.LOCK_EX, 0.01)
    assert found is not None
    os.close(found)
    assert next(same, None) is None
