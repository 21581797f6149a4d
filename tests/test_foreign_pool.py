"""A sample pool from another dataset: whose images are mixed in, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ray.config import Sweep
from mi_ray.study.prepare import prepare

SWEEP = {
    "name": "foreign",
    "dataset": "digits",
    "points": {"count": 10},
    "checks": "cheap",
    "classifiers": [{"name": "f", "architecture": {"cnn_small": {"width": 4}}, "training": {"epochs": 1}}],
    "attacks": [{"pgd": {"steps": 1}, "epsilon": 0.04}],
    "defenses": [{"mi_ol": {"lam": 0.5}}, {"mi_pl": {"lam": 0.5}}],
}


def archive(path: Path, side: int) -> str:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, side, side, 3), dtype=np.uint8), np.arange(40)  # 40 classes, not ten
    np.savez(path, x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5])
    return str(path)


def test_the_pool_is_of_the_other_dataset_and_changes_what_mixes_alone(tmp_path: Path) -> None:
    own = prepare(Sweep.model_validate(SWEEP))
    other = prepare(Sweep.model_validate({**SWEEP, "pool": {"npz": archive(tmp_path / "other.npz", 32)}}))
    (data,) = other.pools.values()
    pool = data.pool(10, torch.device("cpu"))
    assert pool.foreign
    assert len(pool) == 40
    keys = [{work.key for work in study.plan().outputs} for study in (own, other)]
    shared = keys[0] & keys[1]
    assert shared == {work.key for work in own.plan().outputs if work.component is None}
    assert [work.key for work in own.plan().attacks] == [work.key for work in other.plan().attacks]


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    written = {**SWEEP, "pool": {"npz": archive(tmp_path / "small.npz", 8)}}
    with pytest.raises(ValueError, match=r"pool: images must have the size of the dataset's, \[32, 32, 3\]"):
        prepare(Sweep.model_validate(written))
