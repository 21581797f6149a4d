"""A finished study's fingerprint follows all that it came from."""

from typing import Any

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
