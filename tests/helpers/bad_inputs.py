"""The table of bad inputs (tests/bad_inputs): each case is files and a command, and the one line that must come of it.

A case has some of these, and `says`, the whole line:
change: keys of the small sweep below that are replaced, which is then sweep.yaml. text: what sweep.yaml holds instead.
files: text by name. hex: bytes by name. tensors: a torch file by name, as shapes by tensor (`fill` for all values). arrays: an
.npz by name, as shape and dtype by array. command: what stands after `mi-ray`; `sweep sweep.yaml` when left out.
quick: whether `make test` runs the case; `make test-long` runs all.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

TABLE = Path(__file__).parent.parent / "bad_inputs"
Case = Mapping[str, Any]

SWEEP: dict[str, Any] = {
    "name": "tiny",
    "dataset": "digits",
    "points": {"count": 40},
    "batch": 20,
    "classifiers": [{"name": "f", "architecture": {"cnn_small": 2}, "training": {"epochs": 1}}],
    "attacks": [{"pgd": {"steps": 2}, "epsilon": "8/255"}],
    "defenses": ["none", {"gaussian_noise": {"sigma": 0.1}}],
    "checks": "cheap",
}
# What no line for a person may hold: expressions, and the words of Python and of libraries.
FOREIGN = (
    r"\^\[|\\w|Traceback|Input should|valid (tuple|dict|list|string|integer|number)|pydantic|NoneType|object at 0x|<class|"
    r"_dispatch|weights_only|yaml\.|<unicode string>|errno|\[Errno|ArrowInvalid|unexpected keyword"
)


@cache
def _table() -> dict[str, list[Case]]:
    """The cases of each file. Every process of the tests reads them, which in Python alone would take seconds."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {
        file.stem: loader(file.read_text(encoding="utf-8")).get_single_data() for file in sorted(TABLE.glob("*.yaml"))
    }


def cases(*, quick: bool) -> Iterator[tuple[str, Case]]:
    """(name, case) of the table; quick: those that `make test` runs, else all others."""
    for file, found in _table().items():
        for number, case in enumerate(found, 1):
            if bool(case.get("quick")) == quick:
                yield f"{file}-{number}", case


def lay_out(case: Case, folder: Path) -> list[str]:
    """Write a case's files into a folder; returns the command's arguments."""
    document = {**SWEEP, **case.get("change", {})}
    text = case["text"] if "text" in case else yaml.safe_dump(document, sort_keys=False)
    written: dict[str, bytes] = {"sweep.yaml": text.encode()}
    written |= {name: content.encode() for name, content in case.get("files", {}).items()}
    written |= {name: bytes.fromhex(content) for name, content in case.get("hex", {}).items()}
    for name, content in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name, shapes in case.get("tensors", {}).items():
        fill = float(case.get("fill", 0.01))
        torch.save({key: torch.full(tuple(shape), fill) for key, shape in shapes.items()}, folder / name)
    for name, arrays in case.get("arrays", {}).items():
        np.savez(folder / name, **{key: _array(*about) for key, about in arrays.items()})
    return list(case.get("command", ["sweep", "sweep.yaml"]))


def _array(shape: list[int], dtype: str, values: list[Any] | None = None) -> Any:
    """An array of that form: these values again and again; left out, images of noise, or labels 0, 1, 0, 1, …"""
    size = int(np.prod(shape))
    if values is not None:
        return np.resize(np.array(values, dtype), shape)
    if len(shape) > 1:
        return np.random.default_rng(size).integers(0, 256, shape).astype(dtype)
    return (np.arange(size) % 2).astype(dtype)
