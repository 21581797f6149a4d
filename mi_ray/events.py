"""What happens in a run, as JSON lines for machines: one object a line, written as it happens.

Every line has `time` (UTC), `event` and what the event is about: study, kind and key of the work, points [start, stop],
attempt, seconds, node, process. Nothing is written unless a file is asked for.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOG = logging.getLogger("mi_ray.events")
_LOG.propagate = False  # These lines are for machines, and would else reach the console through the root logger.
_LOG.addHandler(logging.NullHandler())
_ABOUT: dict[str, Any] = {}


class JsonLines(logging.Formatter):
    """Formats a record of `event` as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; a value that JSON cannot hold is written as text."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts = getattr(record, "facts", {})
        line = {"time": f"{at}.{int(record.msecs):03d}Z", "event": record.getMessage(), **facts}
        return json.dumps(line, default=str, ensure_ascii=False)


def event(what: str, /, **facts: Any) -> None:
    """Note that something happened; facts that are None are left out."""
    if _LOG.isEnabledFor(logging.INFO) and len(_LOG.handlers) > 1:
        told = {key: value for key, value in {**_ABOUT, **facts}.items() if value is not None}
        _LOG.info(what, extra={"facts": told})


@contextlib.contextmanager
def about(**facts: Any) -> Iterator[None]:
    """Add these facts to every event while the block runs."""
    before = dict(_ABOUT)
    _ABOUT.update(facts)
    try:
        yield
    finally:
        _ABOUT.clear()
        _ABOUT.update(before)


@contextlib.contextmanager
def written_to(path: str | Path | None) -> Iterator[None]:
    """Append events to a file while the block runs; nothing for None. Raises ValueError when it cannot be written."""
    if path is None:
        yield
        return
    try:
        Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--log must name a file that can be written; {path}: {error.strerror}") from error
    handler.setFormatter(JsonLines())
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        handler.close()
