"""A finished study's fingerprint follows all that it came from."""

from pathlib import Path
from typing import Any

import pytest
from helpers.sweeps import sweep

from mi_ray.store.manifest import study_fingerprint


def test_the_fingerprint_follows_sweep_code_and_data_files(tmp_path: Any) -> None:
    code, data = tmp_path / "code.py", tmp_path / "data.npz"
    code.write_text("a")
    data.write_bytes(b"1")
    npz = {"npz": str(data)}
    first = study_fingerprint(sweep(dataset=npz), [code])
    assert study_fingerprint(sweep(dataset=npz), [code]) == first
    assert study_fingerprint(sweep(dataset=npz, seed=1), [code]) != first
    data.write_bytes(b"12")
    second = study_fingerprint(sweep(dataset=npz), [code])
    code.write_text("b")
    third = study_fingerprint(sweep(dataset=npz), [code])
    assert len({first, second, third}) == 3


def test_the_fingerprint_follows_the_files_of_the_sample_pool(tmp_path: Any) -> None:
    data = tmp_path / "pool.npz"
    data.write_bytes(b"1")
    foreign = sweep(pool={"npz": str(data)})
    first = study_fingerprint(foreign, [])
    data.write_bytes(b"12")
    assert study_fingerprint(foreign, []) != first


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("data/f.bin", {"dataset": {"cifar10": {}}}),
        ("data/f.bin", {"dataset": {"torchvision": {"name": "SVHN"}}}),
        ("data/f.bin", {"dataset": {"imagefolder": {"size": 8, "fit": "squash"}}}),
        ("data/CIFAR-10-C/fog.npy", {"dataset": {"cifar_c": {"corruption": "fog"}}}),
        ("pictures/f.png", {"dataset": {"imagefolder": {"path": "pictures"}}}),
        ("models/cifar10/Linf/M.pt", {"classifiers": [{"name": "c", "robustbench": {"model": "M"}}]}),
        ("own/M.pt", {"classifiers": [{"name": "c", "robustbench": {"model": "M", "root": "own"}}]}),
        ("w.pt", {"classifiers": [{"name": "c", "factory": "nets:make", "arguments": {"path": "w.pt"}}]}),
    ],
)
def test_the_fingerprint_follows_files_in_the_folder_where_they_are_looked_for(
    file: str, said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"1")
    before = study_fingerprint(sweep(**said), [])
    place.write_bytes(b"12")
    assert study_fingerprint(sweep(**said), []) != before
