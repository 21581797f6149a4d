"""Leases: one command of many gets one, a dead one's is taken over, a living one's never, and no clock has a say in it."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest
from helpers.buckets import S3
from helpers.clusters import wait_until
from helpers.commands import TINY as STUDY
from helpers.commands import assert_same_rows, command
from helpers.commands import rows as rows_of

import mi_ray.store.leases as leases
from mi_ray import progress
from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store
from mi_ray.store.files import StorageError
from mi_ray.store.leases import LeaseLostError, ObjectSlot, Tag, is_dead, leased, refusal, tried
from mi_ray.store.locks import lock_store, lock_study, running
from mi_ray.store.manifest import CUT_SHORT, overviews, write_manifest
from mi_ray.store.read import read_records


class Shelf:
    """A bucket with one object, as the protocol has it. failing: raised by the next writes, which are done all the same."""

    def __init__(self, creates: bool = False, overwrites: bool = False) -> None:
        self.lock, self.content, self.version = threading.Lock(), b"", 0
        self.there, self.creates, self.overwrites = False, creates, overwrites
        self.failing, self.reads, self.down = 0, 0, False

    def read(self) -> tuple[bytes, Tag] | None:
        with self.lock:
            self.reads += 1
            return (self.content, {"e_tag": str(self.version)}) if self.there else None

    def write(self, content: bytes, over: Tag | None) -> Tag | None:
        with self.lock:
            if self.down:
                raise StorageError("no way to the server")
            if over is None:
                fits = not self.there or self.creates
            else:
                fits = (self.there and over["e_tag"] == str(self.version)) or self.overwrites
            if not fits:
                return None
            self.there, self.content, self.version = True, content, self.version + 1
            if self.failing:
                self.failing -= 1
                raise StorageError("the answer was lost")
            return {"e_tag": str(self.version)}

    def remove(self) -> None:
        with self.lock:
            self.there = False


def nobody(who: str) -> None:
    pytest.fail(f"{who} was waited for or taken to be dead")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A look every hundredth of a second, a beat every fiftieth, and nobody dead before half a second without one."""
    monkeypatch.setattr(leases, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(leases, "BEAT_EVERY", 0.02)
    monkeypatch.setattr(leases, "LOOKS", 50)
    yield
    progress.stop(None)


def elsewhere(shelf: Shelf) -> None:
    """The lease as another machine's process has left it, which nobody renews."""
    about = {"pid": 7, "host": "far", "since": "2026-01-01 00:00:00", "id": "other", "beat": 3}
    shelf.there, shelf.content, shelf.version = True, json.dumps(about).encode(), shelf.version + 1


def test_of_many_commands_one_at_a_time_holds_the_lease_and_each_gets_its_turn() -> None:
    shelf, inside, most, turns = Shelf(), [0], [0], list[int]()
    lock = threading.Lock()

    def command(number: int) -> None:
        with leased(shelf, lambda who: None, nobody):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.03)
            with lock:
                inside[0] -= 1
                turns.append(number)

    threads = [threading.Thread(target=command, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], sorted(turns)) == (1, list(range(12)))
    assert not shelf.there  # nothing is left


def test_a_dead_commands_lease_is_taken_over_after_so_many_looks_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf, waited, dead = Shelf(), list[str](), list[str]()
    elsewhere(shelf)
    with leased(shelf, waited.append, dead.append):
        assert shelf.reads == leases.LOOKS + 1
    assert waited == dead == ["process 7 on far since 2026-01-01 00:00:00"]


def test_looks_are_counted_and_not_time_so_that_a_clock_that_jumps_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: next(jumps) * 1e5 % 7e8)
    monkeypatch.setattr(time, "monotonic", lambda: next(jumps) * 1e5)
    shelf, begun, over = Shelf(), threading.Event(), threading.Event()

    def living() -> None:
        with leased(shelf, nobody, nobody):
            begun.set()
            over.wait(10)

    other = threading.Thread(target=living)
    other.start()
    assert begun.wait(5)
    ended = threading.Timer(3 * leases.LOOKS * leases.LOOK_EVERY, over.set)
    ended.start()
    waited = list[str]()
    with leased(shelf, waited.append, nobody):
        assert over.is_set()  # it gave the lease back; it was not taken to be dead in three times the looks
    other.join()
    assert len(waited) == 1


def test_who_was_held_up_for_too_long_ends_at_the_next_step_and_leaves_the_others_lease_alone() -> None:
    shelf = Shelf()
    with (
        pytest.raises(LeaseLostError, match=r"must renew its lease.*process 7 on far .* works on it now.*same command"),
        leased(shelf, nobody, nobody),
    ):
        elsewhere(shelf)  # taken over while this process stood still
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            progress.raise_if_stopped()
            time.sleep(0.01)
    assert b"far" in shelf.content
    assert shelf.there
    progress.raise_if_stopped()  # what comes next is not ended by it


def test_an_answer_that_was_lost_and_an_outage_cost_nobody_a_lease() -> None:
    shelf = Shelf()
    with leased(shelf, nobody, nobody):
        shelf.failing = 2
        time.sleep(0.2)
        assert shelf.failing == 0
        shelf.down = True
        time.sleep(0.1)
        shelf.down = False
        before = shelf.version
        time.sleep(0.2)
        assert shelf.version > before + 2
        progress.raise_if_stopped()
    assert not shelf.there


def test_content_that_breaks_off_is_asked_for_again_and_ends_no_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    from obstore.exceptions import GenericError

    class Answer:
        meta: ClassVar = {"e_tag": "1"}

        def bytes(self) -> bytes:
            broken.append("reset")
            if len(broken) % 3:
                raise GenericError("connection reset while the body was read")
            return b"held"

    class Bucket:
        def get(self, name: str) -> Answer:
            return Answer()

    broken = list[str]()
    monkeypatch.setattr("mi_ray.store.files.FIRST_WAIT", 0.0)
    assert ObjectSlot(Bucket(), "lease").read() == (b"held", {"e_tag": "1"})
    assert len(broken) == 3

    shelf = Shelf()
    with leased(shelf, nobody, nobody):
        write, fails = shelf.write, iter([True, False])
        monkeypatch.setattr(shelf, "write", lambda *said: 1 / 0 if next(fails, False) else write(*said))
        before = shelf.version
        time.sleep(0.2)
        assert shelf.version > before + 2


def test_what_cannot_be_given_back_is_left_to_be_taken_over() -> None:
    shelf, dead = Shelf(), list[str]()
    with leased(shelf, nobody, nobody):
        shelf.down = True
    assert shelf.there
    shelf.down = False
    with leased(shelf, lambda who: None, dead.append):
        assert len(dead) == 1


@pytest.mark.parametrize(
    ("shelf", "why"),
    [
        (Shelf(), None),
        (Shelf(creates=True), "makes an object anew that must not be there yet"),
        (Shelf(overwrites=True), "writes over an object that has been changed meanwhile"),
    ],
)
def test_a_server_that_takes_conditional_writes_for_plain_ones_is_found_out(shelf: Shelf, why: str | None) -> None:
    found = tried(shelf)
    assert (found is None) if why is None else (found is not None and why in found)
    assert not shelf.there


def test_a_process_of_this_machine_that_is_gone_need_not_be_waited_for() -> None:
    about = leases.about_process()
    assert not is_dead(json.dumps(about).encode())
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for changed, dead in (
        ({"pid": int(gone.stdout)}, True),
        ({"began": "1"}, True),  # its number has been given to another process
        ({"pid": int(gone.stdout), "machine": "another"}, False),
        ({"pid": int(gone.stdout), "machine": None}, False),
    ):
        assert is_dead(json.dumps({**about, **changed}).encode()) == dead, changed
    assert not is_dead(b"\xff{")


HOLD = """
import sys, time
import mi_ray.store.leases as leases
from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store
from mi_ray.store.locks import lock_study
if "far" in sys.argv:
    leases._machine = lambda: "far"
with lock_study(Store(sys.argv[1]), "tiny", print) as waited:
    print("held", waited, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(s3: S3) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that holds the lease on the study, here or as if it were on another machine."""
    begun = list[subprocess.Popen[str]]()

    def started(*where: str) -> subprocess.Popen[str]:
        begun.append(subprocess.Popen([sys.executable, "-c", HOLD, s3.uri, *where], stdout=subprocess.PIPE, text=True))
        assert begun[-1].stdout is not None
        assert begun[-1].stdout.readline() == "held False\n"
        return begun[-1]

    yield started
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("where", ["here", "far"])
def test_a_killed_process_loses_its_lease_on_a_bucket_at_once_here_and_after_the_looks_elsewhere(
    s3: S3, hold: Callable[..., subprocess.Popen[str]], where: str
) -> None:
    store, told = Store(s3.uri, create=True), list[str]()
    other = hold(where)
    killed = threading.Timer(0.5, other.kill)
    killed.start()
    with lock_study(store, "tiny", told.append) as waited:
        assert other.wait(5) == -9
        assert waited
    assert [f"waiting for process {other.pid} on " in line for line in told] == [True, False]
    assert "is dead or has not said for" in told[1]
    assert not any(name.endswith(".lease") for name in store.names(""))


def test_status_says_who_holds_a_lease_and_that_one_has_died(
    s3: S3, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    store = Store(s3.uri, create=True)
    keys = {kind: list[str]() for kind in ("classifiers", "adversarial", "outputs")}
    write_manifest(store, "tiny", "running", keys, {})
    assert (running(store, "tiny"), overviews(store)[0].state.partition(":")[0]) == (None, "running")
    other = hold()
    assert overviews(store)[0].state.startswith(f"running (process {other.pid} on ")
    other.kill()
    other.wait()
    assert overviews(store)[0].state.startswith(f"{CUT_SHORT} while running; the same command goes on")


def test_a_compaction_waits_for_sweeps_on_a_bucket_and_sweeps_for_it(s3: S3) -> None:
    store, told, order = Store(s3.uri, create=True), list[str](), list[str]()

    def sweep(name: str, seconds: float) -> None:
        with lock_study(Store(s3.uri), name, told.append):
            order.append(f"{name} begins")
            time.sleep(seconds)
            order.append(f"{name} ends")

    first = threading.Thread(target=sweep, args=("first", 0.5))
    first.start()
    while "first begins" not in order:
        time.sleep(0.01)
    with lock_store(store, told.append, alone=True):
        order.append("compaction begins")
        second = threading.Thread(target=sweep, args=("second", 0.0))
        second.start()
        time.sleep(0.5)
        order.append("compaction ends")
    first.join()
    second.join()
    begun = ["first begins", "first ends", "compaction begins", "compaction ends", "second begins", "second ends"]
    assert order == begun
    assert any(f"which works on {s3.uri}" in line for line in told)
    assert any(f"which works alone on {s3.uri}" in line for line in told)
    assert not any(name.endswith(".lease") for name in store.names(""))


@pytest.mark.parametrize(
    ("kind", "why"),
    [("conditions", "must not be there yet"), ("501", "Not Implemented"), ("403", "Forbidden|AccessDenied")],
)
def test_a_bucket_whose_server_has_no_conditional_writes_is_one_line_and_no_lock(s3: S3, kind: str, why: str) -> None:
    store, told = Store(s3.uri, create=True), list[str]()
    s3.faults(share=1.0, kinds=[kind], methods=["PUT"], path=".lease")
    with lock_store(store, told.append), lock_study(store, "tiny", told.append) as waited:
        assert not waited
    assert len(told) == 1
    assert told[0].startswith(f"note: {s3.uri} cannot be locked, since ")
    assert "\n" not in told[0]
    assert re.search(why, told[0])


@pytest.mark.parametrize("path", ["deep/my%20results", "deep/a%2Bb%231", "deep/r%C3%A9sultats/"])
def test_a_lease_lies_in_its_store_however_the_address_writes_a_name(s3: S3, path: str) -> None:
    store = Store(f"s3://{s3.bucket}/{path}", create=True)
    with lock_study(store, "study", print):
        assert ".study-study.lease" in store.names("")
    assert {*s3.objects()} == {f"{unquote(path).rstrip('/')}/mi-ray-store.json"}


def test_what_is_no_bucket_has_no_leases(tmp_path: Path) -> None:
    assert refusal(Store("memory://leases/results", create=True)) == "memory has no conditional writes"


def test_faults_that_pass_do_not_keep_a_lease_from_being_had(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(s3.uri, create=True)
    s3.faults(share=0.3, seed=5)
    for _ in range(3):
        with lock_study(store, "tiny", nobody) as waited:
            assert not waited
    assert sum(s3.failed().values()) > 3
    s3.faults()
    assert not any(name.endswith(".lease") for name in store.names(""))


def events(folder: Path, number: int, what: str) -> list[tuple[str, ...]]:
    """What a command's log says of blocks: the key of the work and its points, or of a training its key."""
    file = folder / f"log-{number}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(line["key"], str(line.get("points"))) for line in lines if line["event"] == what]


class Drivers:
    """Real commands on one bucket, each with a log of its own."""

    def __init__(self, s3: S3, folder: Path) -> None:
        self.s3, self.folder, self.begun = s3, folder, list[subprocess.Popen[str]]()

    def start(self) -> subprocess.Popen[str]:
        """One more of the same command."""
        number = len(self.begun)
        program = [*command(self.folder, STUDY)[:-1], self.s3.uri, "--log", f"log-{number}.jsonl"]
        with (self.folder / f"output-{number}.txt").open("w") as told:
            self.begun.append(
                subprocess.Popen(program, cwd=self.folder, stdout=told, stderr=told, text=True, start_new_session=True)
            )
        return self.begun[-1]

    def said(self, number: int) -> str:
        """What a command has said, its lines joined."""
        return " ".join((self.folder / f"output-{number}.txt").read_text().split())

    def done(self, number: int) -> set[tuple[str, ...]]:
        """What a command has computed to its end."""
        kinds = ("block done", "training done")
        return {found for kind in kinds for found in events(self.folder, number, kind)}

    def assert_rows(self, undisturbed: Path) -> None:
        """The rows of an undisturbed run, and nothing left over."""
        found = read_records(self.s3.uri, "tiny").sort_values(["cell", "point"]).reset_index(drop=True)
        assert_same_rows(found, rows_of(undisturbed))
        assert check_store(Store(self.s3.uri))[0] == []
        assert not any(name.endswith(".lease") for name in Store(self.s3.uri).names(""))


@pytest.fixture
def drivers(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drivers]:
    """Commands that are gone after the test, with everything that they have started."""
    found = Drivers(s3, tmp_path)
    yield found
    for process in found.begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(560)
def test_of_two_commands_on_a_bucket_one_computes_and_the_other_goes_on_when_it_is_killed(
    drivers: Drivers, undisturbed: Path
) -> None:
    first = drivers.start()
    wait_until(lambda: len(drivers.done(0)) >= 2, 200, "the first result")
    second = drivers.start()
    wait_until(lambda: f"waiting for process {first.pid} on " in drivers.said(1), 60, "waiting")
    assert drivers.done(1) == set()
    os.killpg(first.pid, signal.SIGKILL)
    assert second.wait(300) == 0, drivers.said(1)
    assert "is dead or has not said for 60 s that it goes on: taking over" in drivers.said(1)
    assert drivers.done(0) & drivers.done(1) == set()  # nothing is computed twice
    drivers.assert_rows(undisturbed)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(560)
def test_a_command_that_stood_still_for_too_long_stops_when_it_finds_that_another_goes_on(
    drivers: Drivers, undisturbed: Path
) -> None:
    first = drivers.start()
    wait_until(lambda: len(drivers.done(0)) >= 2, 200, "the first result")
    os.kill(first.pid, signal.SIGSTOP)  # a laptop that sleeps
    second = drivers.start()
    wait_until(lambda: "taking over" in drivers.said(1), 200, "the takeover")
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(60) == 1
    assert f"process {second.pid} on " in drivers.said(0)
    assert "works on it now. What is finished is stored, and the same command goes on or waits" in drivers.said(0)
    assert second.wait(300) == 0, drivers.said(1)
    drivers.assert_rows(undisturbed)


@pytest.mark.parametrize(("age", "shown"), [(5.0, True), (400.0, False), (math.inf, True)])
def test_who_holds_a_lease_is_told_unless_its_last_beat_is_known_to_be_long_ago(
    monkeypatch: pytest.MonkeyPatch, age: float, shown: bool
) -> None:
    """Where a storage keeps no times, a study that runs was told to have been cut short."""
    shelf, far = Shelf(), {"pid": 7, "host": "far", "since": "today", "machine": "another"}
    shelf.write(json.dumps(far).encode(), None)
    monkeypatch.setattr("mi_ray.store.locks.open_slot", lambda store, name: shelf)
    store: Any = SimpleNamespace(local=False, age=lambda name: age)
    assert running(store, "tiny") == ("process 7 on far since today" if shown else "")
