"""Ctrl-C with and without a stage, temporary files of killed processes, callbacks by name: without Ray's processes."""

import io
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

import mi_ray.progress
import mi_ray.store.files
from mi_ray.cluster.callbacks import Callbacks
from mi_ray.progress import Stage, ctrl_c, stage, take_back_sigterm
from mi_ray.store.blocks import Store
from mi_ray.store.files import remove_temporary_files

PROGRAM = """
import sys, time
from rich.console import Console
from mi_ray.progress import ctrl_c, exit_code, stage

def work(shown):
    print("working", flush=True)
    time.sleep(0.5)      # Ctrl-C comes here
    print("after", flush=True)
    if sys.argv[1] == "once":
        shown.advance(1)
    time.sleep(60)

try:
    with ctrl_c(exits=sys.argv[1] != "python"):
        if sys.argv[1] == "outside":
            print("working", flush=True)
            time.sleep(60)
        with stage("work", 2, "points", Console()) as shown:
            work(shown)
except KeyboardInterrupt:
    print("stopped", flush=True)
    raise SystemExit(exit_code())
"""


def pressed(where: str, times: int, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """(exit code, output, errors) of a program at work in which Ctrl-C is pressed so often, or that gets another signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.2)
    said, errors = process.communicate(timeout=30)
    return process.returncode, said, errors


def test_ctrl_c_ends_a_stage_at_its_next_step_and_never_inside_what_it_does() -> None:
    code, said, errors = pressed("once", 1)
    assert (code, "after" in said, said.splitlines()[-1]) == (130, True, "stopped")
    assert "Ctrl-C again: at once" in errors


def test_ctrl_c_where_no_stage_runs_stops_where_it_is() -> None:
    assert pressed("outside", 1)[:2] == (130, "stopped\n")


def test_ctrl_c_twice_ends_the_process_at_once() -> None:
    code, said, errors = pressed("twice", 2)
    assert (code, "stopped" in said) == (130, False)
    assert "stopped at once" in errors
    assert "the same command goes on" in errors


def test_sigterm_ends_a_command_as_ctrl_c_does_and_is_left_alone_in_python() -> None:
    code, said, errors = pressed("once", 1, signal.SIGTERM)
    assert (code, "after" in said, said.splitlines()[-1]) == (143, True, "stopped")
    assert "stopping; running blocks are dropped\n" in errors
    code, said, errors = pressed("once", 2, signal.SIGTERM)  # as to a script and to what it runs
    assert (code, said.splitlines()[-1], "stopped at once" in errors) == (143, "stopped", False)
    assert pressed("python", 1, signal.SIGTERM)[0] == -signal.SIGTERM


def test_a_handler_of_rays_gives_way_in_a_command_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for exits in (True, False):
        with ctrl_c(exits=exits):
            own = signal.getsignal(signal.SIGTERM)
            assert (own is before) != exits
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray puts one of its own in the place
            take_back_sigterm()
            assert signal.getsignal(signal.SIGTERM) is (own if exits else signal.SIG_IGN)
            signal.signal(signal.SIGTERM, own)
        assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_twice_raises_where_it_is_when_python_called() -> None:
    code, said, errors = pressed("python", 2)
    assert (code, "after" in said, said.splitlines()[-1]) == (130, False, "stopped")
    assert "stopped at once" not in errors


def test_inside_another_block_and_beside_the_main_thread_ctrl_c_is_left_as_it_is() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def beside() -> None:
        with ctrl_c():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert seen == [before]
    with ctrl_c(exits=True):
        handled = signal.getsignal(signal.SIGINT)
        with ctrl_c():
            assert signal.getsignal(signal.SIGINT) is handled
        assert signal.getsignal(signal.SIGINT) is handled
    assert (handled is before, signal.getsignal(signal.SIGINT)) == (False, before)


def test_temporary_files_of_killed_processes_go_and_those_being_written_and_all_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mi_ray.store.files, "WRITTEN_IN", 1.0)
    store = Store(tmp_path / "results", create=True)
    folder = tmp_path / "results/outputs/key"
    folder.mkdir(parents=True)
    dead, alive = (
        folder / ".points-00000-00050.parquet.0123abcd.tmp",
        folder / ".points-00050-00100.parquet.0123abce.tmp",
    )
    others = [folder / "points-00000-00050.parquet", folder / ".nfs0001", folder / "notes.tmp"]
    for path in (dead, alive, *others):
        path.write_bytes(b"x")
    writing = threading.Timer(0.3, lambda: alive.write_bytes(b"xx"))
    writing.start()
    assert remove_temporary_files(store) == 1
    writing.join()
    assert not dead.exists()
    assert all(path.exists() for path in (alive, *others))


@pytest.mark.parametrize("written", ["", "os", "os:", ":path", "no.such.module:x", "os:nothing", "os:name"])
def test_a_callback_that_is_none_is_refused_with_what_it_must_be(written: str) -> None:
    with pytest.raises(ValueError, match=r"--callback must be package\.module:factory"):
        Callbacks(factories=[written])


def told(stage: Stage, now: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """The plain line of a stage at a time."""
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: now)
    stage.console.file = io.StringIO()
    stage._line()
    return str(stage.console.file.getvalue())


def test_a_rate_is_of_the_work_and_not_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 0.0)
    shown = Stage("attack", 1000, "points", Console(file=io.StringIO()), "starting 2 workers")
    assert told(shown, 20.0, monkeypatch) == "attack: 0/1,000 points, starting 2 workers, 20 s\n"
    shown.begin()
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 30.0)
    shown.advance(200)
    assert told(shown, 30.0, monkeypatch) == "attack: 200/1,000 points, 20 points/s, 30 s, 40 s left\n"


def test_a_stage_that_nobody_has_begin_begins_with_its_first_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 0.0)
    shown = Stage("train", 400, "images", Console(file=io.StringIO()), "starting a worker")
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 10.0)
    shown.advance(100)
    assert told(shown, 10.0, monkeypatch) == "train: 100/400 images, 10 images/s, 10 s, 30 s left\n"
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 12.0)
    shown.advance(100)
    assert told(shown, 12.0, monkeypatch) == "train: 200/400 images, 50 images/s, 12 s, 4 s left\n"


def test_a_rate_is_not_that_of_an_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short block is told to have begun in the very step that tells of its end."""
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 0.0)
    shown = Stage("outputs", 300, "points", Console(file=io.StringIO()), "starting a worker")
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 40.0)
    shown.begin()
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 40.001)
    shown.advance(200)
    assert told(shown, 40.001, monkeypatch) == "outputs: 200/300 points, 5.0 points/s, 40 s, 20 s left\n"


def test_the_time_that_is_left_goes_by_passes_where_units_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest blocks come first: by points a quarter is done, by passes three quarters."""
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 0.0)
    shown = Stage("attack", 400, "points", Console(file=io.StringIO()), "starting a worker", passes=4000)
    shown.begin()
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 30.0)
    assert shown.left() is None
    shown.advance(100, 3000)
    assert told(shown, 30.0, monkeypatch) == "attack: 100/400 points, 3.3 points/s, 30 s, 10 s left\n"
    shown.advance(300, 1000)
    assert told(shown, 30.0, monkeypatch) == "attack: 400/400 points, 13 points/s, 30 s\n"


def test_the_time_that_is_left_is_known_before_the_first_unit_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of a strong attack takes minutes, and tells meanwhile of its passes."""
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 0.0)
    shown = Stage("attack", 400, "points", Console(file=io.StringIO()), "starting a worker", passes=4000)
    shown.begin()
    shown.under_way = 500.0
    assert told(shown, 30.0, monkeypatch) == "attack: 0/400 points, 0.0 points/s, 30 s, 210 s left\n"
    shown.under_way = 0.0
    shown.advance(100, 1000)
    assert told(shown, 30.0, monkeypatch) == "attack: 100/400 points, 3.3 points/s, 30 s, 90 s left\n"


def test_plain_lines_come_rarer_the_longer_a_stage_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda: 0.0)
    console = Console(file=io.StringIO())
    shown = Stage("attack", 1000, "points", console)
    for second in range(1, 36_001):
        monkeypatch.setattr(mi_ray.progress.time, "monotonic", lambda now=float(second): now)
        shown.advance(0)
    seconds = [int(line.split(", ")[2].split()[0]) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert seconds[:3] == [6, 12, 18]
    assert 350 <= seconds[-1] - seconds[-2] <= 361
    assert len(seconds) < 500


def test_a_bar_shows_the_same_time_as_a_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Stage("attack", 400, "points", Console(file=io.StringIO(), force_terminal=True, width=120), passes=4000)
    assert shown._bar is not None
    (task,) = shown._bar.tasks
    column = shown._bar.columns[-1]
    assert str(column.render(task)) == "-:--:--"  # type: ignore[attr-defined]
    monkeypatch.setattr(shown, "left", lambda: 3725.4)
    task.fields["left"] = shown.left
    assert str(column.render(task)) == "1:02:05"  # type: ignore[attr-defined]
    shown.close()


def test_two_stages_at_once_share_the_terminal_and_one_that_is_cut_short_is_shown_no_more() -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=120)
    with stage("train", 10, "images", console) as train:
        with stage("attack", 4, "points", console) as attack:
            train.advance(3)
            attack.advance(1)
            assert train._bar is attack._bar
        assert [task.visible for task in train._bar.tasks] == [True, False]  # type: ignore[union-attr]
        train.advance(7)
    assert train._bar.tasks[0].finished  # type: ignore[union-attr]
    assert "10/10" in said.getvalue()
    with stage("later", 1, "points", console) as later:
        assert later._bar is not train._bar


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_a_name_are_shown_as_they_are(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with stage("search on net [v2]", 2, "points", console) as shown:
        shown.advance(2)
    assert "search on net [v2]" in console.file.getvalue()  # type: ignore[attr-defined]
