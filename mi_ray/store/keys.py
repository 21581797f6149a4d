"""TODO."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(kind: str, facts: Values) -> str:
    """The name of a result: 24 hexadecimal digits of the SHA-256 of what decides it."""
    return hashlib.sha256(canonical({"kind": kind, **facts}).encode()).hexdigest()[:24]
