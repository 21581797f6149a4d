"""Progress for people, as a live bar on a terminal and a plain line every few seconds elsewhere, and their Ctrl-C.

While a stage runs, a first Ctrl-C ends it at its next step, so that it never lands inside another library; elsewhere it
raises KeyboardInterrupt where it is. A second one ends a command at once. To a command SIGTERM, by which batch systems end what
they run, is a first press, and more of them are none.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

PLAIN_EVERY = 5.0  # seconds between plain lines at first
PLAIN_SHARE = 0.01  # later, of the time that the stage has taken: a log of a night is read by people too
STDERR = 2  # the process's own, since what a notebook puts in the place of sys.stderr is no file


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


class _Rate(ProgressColumn):
    """The column of a bar that shows units per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{_rate(task.speed or 0)} {task.fields['unit']}/s", style="cyan")


class _Left(ProgressColumn):
    """The column of a bar that shows the time that is left."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]()
        return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), style="magenta")


class _CtrlC:
    """What the process knows of Ctrl-C: how often it was pressed, how many stages are open, what a second press does.

    number: of the signal that came last. error: what another thread has found, for which the work must end.
    """

    presses = 0
    number = signal.SIGINT
    open = 0
    exits = False
    error: Exception | None = None


def _pressed(signum: int, frame: object) -> None:
    if signum == signal.SIGTERM and _CtrlC.presses:
        return  # A batch system may send it to a job's script and to all of its processes at once.
    _CtrlC.presses += 1
    _CtrlC.number = signal.Signals(signum)
    if _CtrlC.presses > 1 and _CtrlC.exits:
        os.write(STDERR, b"\nstopped at once; what is finished is stored, and the same command goes on\n")
        os._exit(exit_code())
    if _CtrlC.presses > 1 or not _CtrlC.open:
        raise KeyboardInterrupt
    again = b" (Ctrl-C again: at once)" if signum == signal.SIGINT else b""
    os.write(STDERR, b"\nstopping; running blocks are dropped" + again + b"\n")


def exit_code() -> int:
    """What a command that was stopped exits with, as a shell has it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _CtrlC.number


@contextmanager
def ctrl_c(*, exits: bool = False) -> Iterator[None]:
    """Handle Ctrl-C as this module says while the block runs.

    exits: a second press ends the process, as a command wants it, and SIGTERM counts as a first one; else a second press raises
    KeyboardInterrupt where it is, which leaves a notebook alive. Python handles signals in its main thread alone, and the
    outermost block decides: elsewhere and inside another such block nothing is changed.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is _pressed:
        yield
        return
    _CtrlC.presses, _CtrlC.exits = 0, exits
    replaced = {number: signal.getsignal(number) for number in (signal.SIGINT, *([signal.SIGTERM] if exits else []))}
    for number in replaced:
        signal.signal(number, _pressed)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            if handler is not None:  # One that was not set from Python cannot be.
                signal.signal(number, handler)
        _CtrlC.presses, _CtrlC.exits = 0, False


def take_back_sigterm() -> None:
    """Have SIGTERM count as a press again in a command (`ctrl_c`), where Ray has put a handler of its own in its place.

    That one leaves three seconds until the process is aborted, whatever it is doing.
    """
    if _CtrlC.exits and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _pressed)


def stop(error: Exception | None) -> None:
    """Let the stage that runs end with this error at its next step, from any thread; None takes it back."""
    _CtrlC.error = error


def raise_if_stopped() -> None:
    """Raise KeyboardInterrupt once Ctrl-C was pressed, or the error that `stop` was given."""
    if _CtrlC.presses:
        raise KeyboardInterrupt
    if _CtrlC.error is not None:
        raise _CtrlC.error


SOON = 1.0  # seconds of work, before which its rate is that of all the time


class _Bars:
    """The bars of the stages that are open on a terminal, one below the other, since it holds one display at a time."""

    display: Progress | None = None
    open = 0

    @classmethod
    def opened(cls, console: Console) -> Progress:
        """The display, for one stage more."""
        if cls.display is None:
            columns = (
                TextColumn("{task.description:<28}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                _Left(),
            )
            cls.display = Progress(*columns, console=console)
            cls.display.start()
        cls.open += 1
        return cls.display

    @classmethod
    def closed(cls, bar: TaskID) -> None:
        """A stage has ended; the display ends with the last of them. One that was cut short while others run is shown no more."""
        cls.open -= 1
        if cls.display is not None:
            if cls.open:
                cls.display.update(bar, visible=cls.display.tasks[bar].finished)
            else:
                cls.display.stop()
                cls.display = None


class Stage:
    """A counted stretch of work. `advance` may be called from one thread alone, and raises KeyboardInterrupt on Ctrl-C.

    waits_for: what it is waiting for until the work begins, in words; shown in place of a rate, which is of the work alone.
    passes: all that is to be done, where units differ in what they cost; the time that is left goes by it. under_way: passes
    of units that are not done yet, as far as they are known.
    """

    def __init__(
        self, name: str, total: int, unit: str, console: Console, waits_for: str = "", passes: float = 0.0
    ) -> None:
        self.name, self.total, self.unit, self.console, self.waits_for = name, total, unit, console, waits_for
        self.done, self.started, self._printed = 0, time.monotonic(), time.monotonic()
        self.passes, self.passed, self.under_way = passes or float(total), 0.0, 0.0
        self._begun: tuple[float, int, float] | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = _Bars.opened(console)
            self._task = self._bar.add_task(waits_for or name, total=total, unit=unit, left=self.left)

    def begin(self, ago: float = 0.0) -> None:
        """Note that the work has begun, so many seconds ago; only the first call counts, and `advance` is one too."""
        if self._begun is None:
            self._begun = time.monotonic() - ago, self.done, self.passed
            if self._bar is not None:
                self._bar.update(self._task, description=self.name)

    def advance(self, count: int, passes: float | None = None) -> None:
        """Count some more units as done, and show how many are. passes: that these took, one each where left out."""
        self.done += count
        self.passed += count if passes is None else passes
        if count and self._begun is None:
            self.begin()
        raise_if_stopped()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif self.done < self.total:
            now = time.monotonic()
            if now - self._printed > max(PLAIN_EVERY, PLAIN_SHARE * (now - self.started)):
                self._printed = now
                self._line()

    def _line(self) -> None:
        now, text = time.monotonic(), f"{self.name}: {self.done:,}/{self.total:,} {self.unit}"
        if self._begun is None and self.waits_for:
            text += f", {self.waits_for}"
        else:
            text += f", {_rate(self.rate(now))} {self.unit}/s"
        left = self.left()
        told = f", {left:.0f} s left" if left else ""
        line = f"{text}, {now - self.started:.0f} s{told}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def rate(self, now: float) -> float:
        """Units a second since the work began; over all of the time where too little of it has passed to tell."""
        began, before, _ = self._since(now)
        return (self.done - before) / (now - began) if now > began else 0.0

    def left(self) -> float | None:
        """Seconds that are left, if passes go on as they went; None where none was made."""
        now = time.monotonic()
        began, _, before = self._since(now)
        passed = self.passed + self.under_way
        done = passed - before
        return max(self.passes - passed, 0.0) * (now - began) / done if done > 0 else None

    def _since(self, now: float) -> tuple[float, int, float]:
        """When the work began, as far as that tells of its speed, and the units and passes that were done by then."""
        began, before, passed = self._begun or (self.started, 0, 0.0)
        # No rate can be told where nothing was counted since the work began, or less than `SOON` has passed.
        at_once = (self.done == before and not self.under_way) or now - began < SOON
        return (self.started, 0, 0.0) if at_once else (began, before, passed)

    def close(self) -> None:
        """Stop the bar, or print the last line."""
        if self._bar is not None:
            _Bars.closed(self._task)
        else:
            self._line()


@contextmanager
def stage(
    name: str, total: int, unit: str, console: Console, waits_for: str = "", passes: float = 0.0
) -> Iterator[Stage]:
    """Open a stage for a block of code, and close it also when the block fails. waits_for, passes: see `Stage`."""
    running = Stage(name, total, unit, console, waits_for, passes)
    _CtrlC.open += 1
    try:
        yield running
    finally:
        _CtrlC.open -= 1
        running.close()
    raise_if_stopped()
