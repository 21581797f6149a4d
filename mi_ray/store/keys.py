"""Content keys: a result is named by a hash of everything that decides it, so that equal work has one name."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]


def canonical(value: object) -> str:
    """JSON text with sorted keys and no spaces, so that equal values have equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(kind: str, ingredients: Values) -> str:
    """The name of a result: the first 24 hexadecimal digits of the SHA-256 of its kind and of what decides it.

    kind: what the result is, so that two kinds never share a name. ingredients: what decides it, JSON values by name.
    """
    return hashlib.sha256(canonical({"kind": kind, **ingredients}).encode()).hexdigest()[:24]
