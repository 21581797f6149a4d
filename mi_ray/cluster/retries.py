"""What is done about work that failed: how often it is tried again, when it is tried alone, and what is said at last.

A machine that vanishes is nobody's fault, so its work runs again. Work that fails by itself is tried again only where
that can help. Nothing is ever computed in another shape: one attempt differs from the next only in when and where it
runs, and in whether it has a node for itself.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ray import exceptions

Fault = Literal["node lost", "worker lost", "out of memory", "time limit", "storage", "error"]
# How many attempts may end so before the work is given up: a poison block kills every worker that it meets.
ENDURED: dict[Fault, int] = {
    "node lost": 50,
    "worker lost": 6,
    "out of memory": 1,
    "time limit": 2,
    "storage": 3,
    "error": 0,
}
_LOST = (
    exceptions.WorkerCrashedError,
    exceptions.RayActorError,
    exceptions.ObjectLostError,
    exceptions.LocalRayletDiedError,
    exceptions.TaskCancelledError,
    exceptions.RaySystemError,
    exceptions.RpcError,
    exceptions.RuntimeEnvSetupError,
    exceptions.GetTimeoutError,
)
_NO_MEMORY = "can't allocate memory"


class GivenUpError(RuntimeError):
    """Work was tried as often as it may be; the message says why, and what a person can do."""


def innermost(error: BaseException) -> BaseException:
    """The error at the bottom of a chain of causes."""
    return list(causes(error))[-1]


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, from the outermost to the innermost."""
    found: BaseException | None = error
    seen = set[int]()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        cause = getattr(found, "cause", None)  # Ray's; another library's error may have a text of that name.
        found = cause if isinstance(cause, BaseException) else found.__cause__


def fault_of(error: BaseException) -> Fault:
    """What kind of failure an error of Ray, or of the work that ran on it, is."""
    for found in causes(error):
        # The three are Ray's memory monitor and Python, torch on a GPU, and torch on a CPU.
        if isinstance(found, MemoryError) or type(found).__name__ == "OutOfMemoryError" or _NO_MEMORY in str(found):
            return "out of memory"
        if isinstance(found, exceptions.NodeDiedError) or getattr(found, "preempted", False):
            return "node lost"
        if isinstance(found, _LOST):
            return "node lost" if "node" in str(found).lower() and "die" in str(found).lower() else "worker lost"
        if isinstance(found, OSError):
            return "storage"
    return "error"


@dataclass
class Retries:
    """How often one piece of work was tried, and how each attempt ended."""

    tried: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)

    @property
    def alone(self) -> bool:
        """Whether the next attempt has a whole node for itself."""
        return self.faults["out of memory"] > 0

    def failed(self, fault: Fault) -> bool:
        """Count an attempt that failed; returns whether the work is to be tried again."""
        self.faults[fault] += 1
        return self.faults[fault] <= ENDURED[fault]


BLOCK_REMEDY = (
    "out of memory, also with a node for itself; use nodes with more memory, or a smaller `batch` (which is another "
    "result)"
)


def given_up(
    fault: Fault, error: BaseException, times: int, limit: float | None = None, memory: str = BLOCK_REMEDY
) -> Exception:
    """What is reported of work that is not tried again: the error itself, where the work has raised it.

    times: how many attempts ended so. limit: the time limit of a block in seconds, where there is one. memory: what is
    said of work that ran out of memory.
    """
    inner = innermost(error)
    if fault in ("error", "storage"):
        return inner if isinstance(inner, Exception) else GivenUpError(str(inner))
    said: dict[Fault, str] = {
        "node lost": f"lost its node {times} times; run the same command again when the cluster is steadier",
        "worker lost": f"its worker process died {times} times (a crash in native code, or killed from outside); the same "
        "command tries again",
        "out of memory": memory,
        "time limit": f"ran longer than resources.block.time_limit ({limit or 0:g} s) {times} times; raise it, or lower "
        "resources.block.points",
    }
    return GivenUpError(said[fault])
