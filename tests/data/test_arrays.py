"""Datasets from where researchers keep them; what is absent or damaged is named, with the remedy."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.sweeps import sweep
from PIL import Image

from mi_ray.data import SOURCES, Cifar10, Cifar100, Dataset, Digits, Npz, ParquetFolder, flip_and_crop, to_unit
from mi_ray.study.prepare import prepare

DIGITS = "d40760471ada3db20eac2417f77e2b618026169afe448c0904ad6a2d1645c8bc"


def _pictures(count: int, seed: int = 0, size: tuple[int, int] = (6, 6)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


# Digits


def test_digits_have_their_shapes_types_and_sizes(digits: Dataset) -> None:
    assert digits.train_images.shape == (1297, 32, 32, 3)
    assert digits.test_images.shape == (500, 32, 32, 3)
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int64
    assert digits.classes == 10
    assert np.bincount(digits.test_labels).min() >= 45
    assert np.ptp(digits.train_images, axis=3).max() == 0
    assert (digits.train_images.min(), digits.train_images.max()) == (0, 255)


def test_digits_are_those_of_scikit_learn_split_as_it_once_split_them(digits: Dataset) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    train, test = train_test_split(np.arange(len(labels)), test_size=500, random_state=0, stratify=labels)
    assert (digits.train_labels == labels[train]).all()
    assert (digits.test_labels == labels[test]).all()


def test_digits_are_the_same_where_scikit_learn_keeps_its_file_elsewhere(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert Digits().load().digest == digits.digest


def test_the_splits_of_digits_are_disjoint(digits: Dataset) -> None:
    train, test = ({image.tobytes() for image in split} for split in (digits.train_images, digits.test_images))
    assert not train & test


def test_digits_are_the_same_at_each_load_and_everywhere(digits: Dataset) -> None:
    assert Digits().load().digest == digits.digest == DIGITS


def test_a_digest_covers_images_labels_and_classes(digits: Dataset) -> None:
    parts = {
        name: getattr(digits, name).copy() for name in ("train_images", "train_labels", "test_images", "test_labels")
    }
    digests = {digits.digest, Dataset("digits", 11, **parts).digest, Dataset("other name", 10, **parts).digest}
    for part in parts.values():
        part.flat[0] ^= 1
        digests.add(Dataset("digits", 10, **parts).digest)
        part.flat[0] ^= 1
    assert len(digests) == 6  # the name alone is not content


def test_points_are_drawn_by_seed_or_the_first(digits: Dataset) -> None:
    assert digits.points("first", 3) == list(range(500))
    drawn = digits.points("drawn", 3)
    assert sorted(drawn) == list(range(500))
    assert drawn == digits.points("drawn", 3) != digits.points("drawn", 4)


def test_pixels_become_floats_in_the_unit_range() -> None:
    images = _pictures(2)
    found = to_unit(images)
    assert found.shape == (2, 3, 6, 6)
    assert found.dtype == torch.float32
    assert np.array_equal((found.permute(0, 2, 3, 1) * 255).round().numpy().astype(np.uint8), images)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_augmentation_is_a_crop_of_the_padded_image_and_a_flip(kind: str) -> None:
    images = torch.from_numpy(_pictures(40).transpose(0, 3, 1, 2).copy())
    images = images if kind == "uint8" else images.float() / 255
    u = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    found = flip_and_crop(images, u, padding=2, flip=True)
    assert found.dtype == images.dtype
    for image, (row, column, turn), result in zip(images, u.tolist(), found, strict=True):
        top, left = int(row * 5), int(column * 5)
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        padded = padded if turn < 0.5 else padded.flip(-1)
        assert torch.equal(result, padded[:, top : top + 6, left : left + 6])
    assert torch.equal(flip_and_crop(images, u, padding=0, flip=False), images)


# What a dataset must be


def _dataset(**changes: Any) -> Dataset:
    parts = {
        "train_images": _pictures(4),
        "train_labels": np.array([0, 1, 2, 2]),
        "test_images": _pictures(2, 1),
        "test_labels": np.array([1, 0]),
    } | changes
    return Dataset("mine", 3, **parts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_images": _pictures(4).astype(np.float32)}, "train images must be uint8 .*; got float32"),
        ({"test_images": _pictures(2)[..., 0]}, r"test images must be uint8 .*; got uint8 \[2, 6, 6\]"),
        ({"test_images": _pictures(2)[:, 0]}, r"test images must be uint8 .*; got uint8 \[2, 6, 3\]"),
        ({"test_images": _pictures(2)[..., :1]}, r"test images must be uint8 .*; got uint8 \[2, 6, 6, 1\]"),
        ({"train_images": _pictures(3)}, r"train images .*; got uint8 \[3, 6, 6, 3\] with 4 labels"),
        ({"test_labels": np.array([1, 3])}, r"test labels must be in 0..2; got 1 to 3"),
        ({"train_labels": np.array([0, 1, 2, -1])}, r"train labels must be in 0..2; got -1 to 2"),
        (
            {"test_images": _pictures(0), "test_labels": np.array([], np.int64)},
            "the test split must hold images; it is empty",
        ),
        ({"test_images": _pictures(2, size=(5, 6))}, r"train and test images must have one size; got \[6, 6\] and \[5"),
    ],
)
def test_a_dataset_of_another_form_is_refused(changes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"mine: {said}"):
        _dataset(**changes)


# Parquet, in Hugging Face's layout


def _encoded(image: Any, how: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, how)
    return out.getvalue()


def _write_parquet(file: Path, pictures: list[bytes], **columns: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture, "path": f"{row}.png"} for row, picture in enumerate(pictures)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {key: pa.array(values) for key, values in columns.items()}
    pq.write_table(pa.table({"img": pa.array(images, struct), **columns}), file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two train files, the second in a subfolder, and one of test: 5 and 2 pictures."""
    train, test = [_encoded(image) for image in _pictures(5)], [_encoded(image) for image in _pictures(2, 1)]
    _write_parquet(tmp_path / "train-00000-of-00002.parquet", train[:3], label=[0, 1, 2])
    _write_parquet(tmp_path / "z" / "train-00001-of-00002.parquet", train[3:], label=[2, 3])
    _write_parquet(tmp_path / "test-00000-of-00001.parquet", test, label=[1, 3])
    return tmp_path


def test_a_parquet_folder_is_read_in_the_order_of_its_files(folder: Path) -> None:
    found = ParquetFolder(path=str(folder)).load()
    assert (found.name, found.classes) == (folder.name, 4)
    assert np.array_equal(found.train_images, _pictures(5))
    assert np.array_equal(found.test_images, _pictures(2, 1))
    assert found.train_labels.tolist() == [0, 1, 2, 2, 3]
    assert found.test_labels.tolist() == [1, 3]


@pytest.mark.parametrize(("asked", "expected"), [(None, [0, 7]), ("coarse_label", [1, 2]), ("fine_label", [0, 7])])
def test_the_label_column_is_found_or_named(asked: str | None, expected: list[int], tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures = [_encoded(image) for image in _pictures(2)]
        _write_parquet(tmp_path / f"{split}.parquet", pictures, fine_label=[0, 7], coarse_label=[1, 2])
    found = ParquetFolder(path=str(tmp_path), label=asked).load()
    assert found.train_labels.tolist() == expected


def test_grey_pictures_and_jpegs_become_rgb(tmp_path: Path) -> None:
    grey = _pictures(1)[0, ..., 0]
    for split in ("train", "test"):
        _write_parquet(tmp_path / f"{split}.parquet", [_encoded(grey), _encoded(_pictures(1)[0], "JPEG")], label=[0, 1])
    found = ParquetFolder(path=str(tmp_path)).load()
    assert np.array_equal(found.train_images[0], np.repeat(grey[..., None], 3, axis=-1))
    assert found.train_images.shape == (2, 6, 6, 3)


@pytest.mark.parametrize("spoil", [lambda b: b[:40], lambda b: b"no picture", lambda b: b"", lambda b: None])
def test_a_broken_picture_is_named_by_file_and_row(spoil: Any, folder: Path) -> None:
    file = folder / "z" / "train-00001-of-00002.parquet"
    good = _encoded(_pictures(1)[0])
    _write_parquet(file, [good, spoil(good)], label=[2, 3])
    with pytest.raises(
        ValueError, match=r"train-00001-of-00002.parquet, row 1 must hold a picture that PIL can decode"
    ):
        ParquetFolder(path=str(folder)).load()


def test_pictures_of_mixed_sizes_are_refused(folder: Path) -> None:
    pictures = [_encoded(_pictures(1, size=size)[0]) for size in ((6, 6), (7, 6))]
    _write_parquet(folder / "z" / "train-00001-of-00002.parquet", pictures, label=[2, 3])
    with pytest.raises(ValueError, match=r"pictures of train must all have one size; got \[\(6, 6, 3\), \(7, 6, 3\)\]"):
        ParquetFolder(path=str(folder)).load()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_named(split: str, folder: Path) -> None:
    for file in list(folder.rglob(f"{split}*.parquet")):
        file.unlink()
    with pytest.raises(ValueError, match=rf"must hold {split}\*.parquet; .* holds none"):
        ParquetFolder(path=str(folder)).load()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent is not a folder"):
        ParquetFolder(path=str(tmp_path / "absent")).load()


def test_a_file_that_is_no_parquet_is_named(folder: Path) -> None:
    (folder / "test-00000-of-00001.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"test-00000-of-00001.parquet must be a Parquet file"):
        ParquetFolder(path=str(folder)).load()


@pytest.mark.parametrize("asked", [None, "class"])
def test_a_table_without_the_columns_is_refused_and_says_what_it_has(asked: str | None, tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"], "label": ["cat"]}), tmp_path / "train.parquet")
    wanted = asked or "label or fine_label"
    with pytest.raises(ValueError, match=f"an integer column {wanted}; it has picture: binary, label: string"):
        ParquetFolder(path=str(tmp_path), label=asked).load()


def test_the_real_cifar_10_is_read_from_its_parquet_folder() -> None:
    path = os.environ.get("MI_RAY_CIFAR10")
    if not path:
        pytest.skip("set MI_RAY_CIFAR10 to a folder with CIFAR-10 as Parquet files to read the real dataset")
    found = ParquetFolder(path=path).load()
    assert found.train_images.shape == (50_000, 32, 32, 3)
    assert found.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(found.train_labels).tolist() == [5000] * 10
    assert np.bincount(found.test_labels).tolist() == [1000] * 10
    channels = found.train_images.mean((0, 1, 2)) / 255
    assert channels == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)


# NumPy archives


def _npz(folder: Path, **changes: Any) -> Path:
    arrays = {
        "x_train": _pictures(4),
        "y_train": np.array([0, 1, 2, 2], np.uint8),
        "x_test": _pictures(2, 1),
        "y_test": np.array([[1], [0]], np.int32),
    } | changes
    np.savez(folder / "mine.npz", **{key: value for key, value in arrays.items() if value is not None})
    return folder / "mine.npz"


def test_a_study_that_mixes_nothing_needs_no_image_of_each_class(tmp_path: Path) -> None:
    without_class_2 = {"y_train": np.array([0, 1, 1, 0], np.uint8), "y_test": np.array([2, 0], np.int32)}
    pictures = {"x_train": _pictures(4, size=(8, 8)), "x_test": _pictures(2, 1, (8, 8))}
    said = {
        "dataset": {"npz": {"path": str(_npz(tmp_path, **pictures, **without_class_2))}},
        "points": {"count": 2},
        "classifiers": [{"name": "f", "architecture": "cnn_small", "training": {"batch_size": 2}}],
    }
    plan = prepare(sweep(**said, defenses=["none", {"gaussian_noise": {"sigma": 0.1}}])).plan()
    assert {cell.defense.name for cell in plan.cells} == {"none", "gaussian_noise"}
    with pytest.raises(ValueError, match=r"an image of each class; none of class \[2\]"):
        prepare(sweep(**said, defenses=["none", {"chain": {"of": [{"mi_ol": 0.5}]}}]))


def test_an_npz_is_read(tmp_path: Path) -> None:
    found = Npz(path=str(_npz(tmp_path))).load()
    assert (found.name, found.classes) == ("mine", 3)
    assert np.array_equal(found.train_images, _pictures(4))
    assert found.test_labels.tolist() == [1, 0]
    assert found.test_labels.dtype == np.int64


@pytest.mark.parametrize("axes", [3, 4])
def test_grey_images_of_an_npz_become_rgb(axes: int, tmp_path: Path) -> None:
    grey = {f"x_{split}": _pictures(n)[..., :1] for split, n in (("train", 4), ("test", 2))}
    given = {key: value[..., 0] if axes == 3 else value for key, value in grey.items()}
    found = Npz(path=str(_npz(tmp_path, **given))).load()
    assert np.array_equal(found.train_images, np.repeat(grey["x_train"], 3, axis=-1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y_test": None}, "must hold x_train, y_train, x_test, y_test; it lacks y_test"),
        ({"x_train": _pictures(4) / 255}, "train images must be uint8"),
        ({"x_train": _pictures(3)}, "with one label each"),
        ({"y_train": np.array([0, 1, 2, -1])}, "y_train must hold one whole number from 0 on"),
        ({"y_train": np.array([{}, 1, 2, 3], object)}, "archive of plain arrays, without pickles"),
    ],
)
def test_an_npz_of_another_form_is_refused(changes: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        Npz(path=str(_npz(tmp_path, **changes))).load()


def _npy_bytes() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no archive", pickle.dumps([1]), b"PK\x03\x04 cut short", _npy_bytes()],
    ids=["absent", "empty", "text", "pickle", "zip cut short", "npy"],
)
def test_a_file_that_is_no_npz_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine.npz must be a readable .npz archive"):
        Npz(path=str(path)).load()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_npz_is_refused(compressed: bool, tmp_path: Path) -> None:
    path = _npz(tmp_path)
    if compressed:
        with np.load(path) as archive:
            np.savez_compressed(path, **dict(archive))
    content = bytearray(path.read_bytes())
    content[200:230] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine.npz must be a readable .npz archive"):
        Npz(path=str(path)).load()


# CIFAR


@pytest.mark.parametrize("source", [Cifar10, Cifar100])
def test_an_absent_cifar_says_how_to_get_it(source: Any, tmp_path: Path) -> None:
    said = rf"{source.name} must be in .*{source.folder}.*Remedy: .*download: true.* or .*\{{parquet: folder\}}"
    with pytest.raises(ValueError, match=said):
        source(root=str(tmp_path)).load()
    assert not list(tmp_path.iterdir())


def test_every_dataset_is_registered() -> None:
    assert set(SOURCES) >= {"digits", "cifar10", "cifar100", "parquet", "npz"}
