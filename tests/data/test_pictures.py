"""Datasets of pictures: resizing, folders, torchvision, the Hugging Face hub, corrupted CIFAR, and what stays on disk."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.sweeps import sweep
from PIL import Image

import mi_ray
from mi_ray.data import SOURCES, Dataset, pictures
from mi_ray.data.arrays import in_rgb
from mi_ray.data.disk_images import DiskImages, chosen, written
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool, without


def arrays(count: int, seed: int = 0, side: tuple[int, int] = (6, 6)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, *side, 3), np.uint8)


def folder_of_pictures(root: Path, sizes: Any = ((12, 10), (9, 14)), each: int = 2) -> Path:
    """train and val with two classes of PNG pictures of several sizes."""
    for seed, (split, name) in enumerate((s, c) for s in ("train", "val") for c in ("cat", "dog")):
        (root / split / name).mkdir(parents=True)
        for number in range(each):
            size = sizes[number % len(sizes)]
            Image.fromarray(arrays(1, 10 * seed + number, size)[0]).save(root / split / name / f"{number}.png")
    return root


def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)


# Folders, and the rule of resizing


@pytest.mark.parametrize(("fit", "resize"), [("crop", None), ("crop", 10), ("squash", None)])
def test_a_folder_of_pictures_of_any_size(tmp_path: Path, fit: str, resize: Any) -> None:
    said = {"path": str(folder_of_pictures(tmp_path)), "size": 8, "fit": fit, "resize": resize}
    found = SOURCES.make("imagefolder", {key: value for key, value in said.items() if value is not None}).load()
    assert (found.classes, found.train_images.shape, found.test_labels.tolist()) == (2, (4, 8, 8, 3), [0, 0, 1, 1])
    from torchvision.transforms import v2

    picture = Image.open(tmp_path / "val" / "dog" / "1.png")
    side = (8, 8) if fit == "squash" else resize or 8
    wanted = v2.Compose([v2.Resize(side), v2.CenterCrop(8)])(picture)  # what the field means by these words
    assert np.abs(np.asarray(wanted).astype(int) - found.test_images[3].astype(int)).max() <= 1


def test_grey_pictures_of_sixteen_bits_are_scaled_and_of_unknown_range_refused(tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path, sizes=((6, 6),))
    grey = arrays(1)[0, :, :, 0]
    for file in root.rglob("*.png"):
        Image.fromarray(grey.astype(np.uint16) * 257).save(file)
    found = SOURCES.make("imagefolder", {"path": str(root)}).load()
    assert (found.train_images == grey[None, :, :, None]).all()
    for number, values in enumerate((grey.astype(np.int32) * 1000, grey.astype(np.float32) / 255)):
        Image.fromarray(values).save(root / "train" / "cat" / f"{number}.tiff")
        with pytest.raises(
            ValueError, match=rf"{number}\.tiff must be a picture .*(32-bit whole|floating-point) numbers, of which"
        ):
            SOURCES.make("imagefolder", {"path": str(root)}).load()
        (root / "train" / "cat" / f"{number}.tiff").unlink()


def test_what_pil_opens_as_whole_numbers_is_scaled_where_its_file_has_sixteen_bits(tmp_path: Path) -> None:
    grey = arrays(1)[0, :, :, 0]
    header = f"P5 {grey.shape[1]} {grey.shape[0]} 65535\n".encode()
    (tmp_path / "grey.pgm").write_bytes(header + (grey.astype(">u2") * 257).tobytes())
    with Image.open(tmp_path / "grey.pgm") as opened:
        assert (np.asarray(in_rgb(opened)) == grey[:, :, None]).all()


def test_copies_in_hidden_folders_are_no_pictures_of_a_class(tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path, sizes=((6, 6),))
    hidden = root / "train" / "cat" / ".ipynb_checkpoints"
    hidden.mkdir()
    for copy in (hidden / "0-checkpoint.png", root / "train" / "cat" / "._0.png"):
        copy.write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    assert len(SOURCES.make("imagefolder", {"path": str(root)}).load().train_labels) == 4


def test_pixels_that_an_older_decoding_left_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(monkeypatch)
    said = {"path": str(folder_of_pictures(tmp_path / "data", sizes=((6, 6),))), "cache": str(tmp_path / "cache")}
    kept = []
    for version in (1, 1, 2):
        monkeypatch.setattr(pictures, "DECODING", version)
        SOURCES.make("imagefolder", said).load()
        kept.append(len([file for file in (tmp_path / "cache").rglob("*") if file.is_file()]))
    assert kept[0] == kept[1] < kept[2]


def test_folders_of_one_relative_name_do_not_share_decoded_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives that are reproducible leave all files with one time and, here, one size."""
    on_disk(monkeypatch)
    read = []
    for name, seed in (("one", 0), ("two", 1)):
        folder_of_pictures(tmp_path / name / "data", sizes=((6, 6),))
        for file in (tmp_path / name / "data").rglob("*.png"):
            Image.fromarray(arrays(1, seed)[0]).save(file.with_suffix(".bmp"))
            file.unlink()
            os.utime(file.with_suffix(".bmp"), (0, 0))
        monkeypatch.chdir(tmp_path / name)
        found = SOURCES.make("imagefolder", {"path": "data", "cache": str(tmp_path / "cache")}).load()
        read.append(np.asarray(found.train_images[:1]))
    assert not (read[0] == read[1]).all()


def test_a_rule_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"imagefolder\.resize must be left out with `fit: squash`"):
        SOURCES.make("imagefolder", {"path": "x", "size": 8, "fit": "squash", "resize": 9})


def test_a_hidden_folder_beside_the_classes_is_no_class(tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path, sizes=((8, 8),))
    (root / "train" / ".ipynb_checkpoints").mkdir()
    assert SOURCES.make("imagefolder", str(root)).load().classes == 2


def test_a_folder_by_its_name_alone_and_a_class_of_torchvision_by_its_own(tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path, sizes=((8, 8),))
    assert SOURCES.make("imagefolder", str(root)).load().train_images.shape == (4, 8, 8, 3)
    found: Any = SOURCES.make("torchvision", "SVHN")
    assert (found.dataset, found.size) == ("SVHN", None)


def test_the_rule_of_resizing_is_in_the_digest(tmp_path: Path) -> None:
    root = str(folder_of_pictures(tmp_path))
    rules: list[dict[str, Any]] = [{"size": 8}, {"size": 8, "resize": 9}, {"size": 8, "fit": "squash"}, {"size": 7}]
    assert len({SOURCES.make("imagefolder", {"path": root, **rule}).load().digest for rule in rules}) == 4


@pytest.mark.parametrize(
    ("spoil", "said", "line"),
    [
        (lambda root: None, {}, r"pictures must all have one size, or be given one with `size:`; .* has \[12, 10\]"),
        (lambda root: (root / "val" / "cow").mkdir(), {"size": 8}, "must hold classes of .*train; it has cow"),
        (
            lambda root: [(root / split / "cow").mkdir() for split in ("train", "val")],
            {"size": 8},
            "train must have images of each class; cow has none",
        ),
        (lambda root: (root / "val").rename(root / "other"), {"size": 8}, "must hold train/CLASS and test/CLASS"),
        (
            lambda root: (root / "val/dog/1.png").write_bytes(b"no"),
            {"size": 8},
            "val/dog/1.png must be a picture that PIL",
        ),
        (lambda root: None, {"size": 8, "resize": 7}, "imagefolder.resize must be at least `size`, 8; got 7"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(tmp_path: Path, spoil: Any, said: Any, line: str) -> None:
    root = folder_of_pictures(tmp_path)
    spoil(root)
    with pytest.raises(ValueError, match=line):
        SOURCES.make("imagefolder", {"path": str(root), **said}).load()


# What stays on disk


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Any, DiskImages]:
    images = arrays(20)
    return images, written(tmp_path / "pixels", (6, 6), 20, iter(images))


def test_images_on_disk_are_those_that_were_written(stored: Any, tmp_path: Path) -> None:
    images, disk = stored
    assert (disk.shape, len(disk), disk.dtype) == ((20, 6, 6, 3), 20, np.uint8)
    assert np.array_equal(disk[3:7], images[3:7])
    assert np.array_equal(chosen(disk, [9, 2])[:], chosen(images, [9, 2]))
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(disk.take([4])))), images[4:5])
    assert len(pickle.dumps(disk)) < 1000
    again = written(tmp_path / "pixels", (6, 6), 20, iter([]))  # nothing is decoded twice
    assert np.array_equal(again[:], images)
    (tmp_path / "pixels" / "pixels").write_bytes(b"short")
    with pytest.raises(OSError, match="it was cut short"):
        disk[19:]


def test_a_pool_on_disk_draws_what_one_in_memory_draws(stored: Any) -> None:
    images, disk = stored
    labels = np.arange(20) % 4
    pools = [SamplePool(each, labels, classes=4) for each in (images, disk)]
    for which in ("predicted", "other"):
        drawn = [
            pool.draw(Draws(Key(0, "x"), [0, 5], 3, 0, torch.device("cpu")), torch.tensor([1, 2]), which)
            for pool in pools
        ]  # type: ignore[arg-type]
        assert torch.equal(*drawn)
    assert [pool.holds(images[:3]) for pool in pools] == [3, 3]
    assert [pool.holds(disk.take([1, 2])) for pool in pools] == [2, 2]
    kept, left, out = without(disk, labels, images[:5])
    assert (np.array_equal(kept[:], images[5:]), left.tolist(), out) == (True, labels[5:].tolist(), 5)
    assert pools[1].digest != SamplePool(disk.take(range(19)), labels[:19], classes=4).digest


def test_a_decoding_that_fails_leaves_nothing_and_one_that_ends_may_be_read_by_all(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from arrays(3)
        raise OSError("the fourth is damaged")

    with pytest.raises(OSError, match="the fourth is damaged"):
        written(tmp_path / "cache/pixels", (6, 6), 20, broken())
    assert list((tmp_path / "cache").iterdir()) == []
    written(tmp_path / "cache/pixels", (6, 6), 3, iter(arrays(3)))
    assert (tmp_path / "cache/pixels").stat().st_mode & 0o777 == 0o755


def test_a_study_on_disk_has_the_images_of_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mi_ray.study.prepare import prepare

    root = folder_of_pictures(tmp_path / "pictures", each=12)
    said = {"imagefolder": {"path": str(root), "size": 8, "cache": str(tmp_path / "cache")}}
    train = [{"name": "f", "architecture": "cnn_small", "training": {"batch_size": 8}}]
    mi = {"classifiers": train, "points": {"count": 20}, "defenses": ["none", {"mi_ol": {"lam": 0.5}}]}
    plain = prepare(sweep(dataset=said, **mi)).data("store", {})
    on_disk(monkeypatch)
    study = prepare(sweep(dataset=said, **mi))
    data = study.data("store", {})
    assert isinstance(data.images, DiskImages)
    assert np.array_equal(data.images[:], plain.images)
    (pool,) = data.pools.values()
    assert isinstance(pool.images, DiskImages)
    assert len(pickle.dumps(data)) < 20_000
    assert prepare(sweep(dataset=said, **mi)).planner.facts.digest == study.planner.facts.digest


MEASURE = """
import resource, sys
import numpy as np
from mi_ray.data.disk_images import DiskImages
from mi_ray.sample_pool import SamplePool
from mi_ray.randomness import Draws, Key
import torch
count, folder = int(sys.argv[1]), sys.argv[2]
disk = DiskImages(folder, (224, 224), np.arange(count))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pool = SamplePool(disk, np.arange(count) % 10, classes=10)
for step in range(4):
    draws = Draws(Key(0, "x"), range(20 * step, 20 * step + 20), 5, 0, torch.device("cpu"))
    drawn = pool.draw(draws, torch.arange(20) % 10, "other")
    clean = disk[50 * step : 50 * step + 50]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, tuple(drawn.shape))
"""


@pytest.mark.long  # It measures memory; what is read of the disk is held above.
def test_large_images_on_disk_take_memory_for_what_is_drawn_alone(tmp_path: Path) -> None:
    count = 4000  # 602 MB of pixels in a sparse file
    (tmp_path / "pixels").touch()
    os.truncate(tmp_path / "pixels", count * 224 * 224 * 3)
    (tmp_path / "hashes").write_bytes(bytes(16 * count))
    path = {**os.environ, "PYTHONPATH": str(Path(mi_ray.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(count), str(tmp_path)], capture_output=True, text=True, check=True, env=path
    )
    kilobytes = int(done.stdout.split()[0])
    assert kilobytes < 250_000, done.stdout  # 100 drawn images are 60 MB of floats; all images would be 602 MB


# torchvision, the hub, corrupted CIFAR


def test_svhn_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    with pytest.raises(
        ValueError, match=r"SVHN must be in .* as torchvision keeps it .*Remedy: `dataset: {torchvision: {name"
    ):
        SOURCES.make("torchvision", {"name": "SVHN", "root": str(tmp_path)}).load()
    images = arrays(6, side=(32, 32))
    for split in ("train", "test"):
        made = {"X": np.moveaxis(images, 0, -1), "y": np.array([10, 1, 2, 3, 4, 5])[:, None]}
        savemat(tmp_path / f"{split}_32x32.mat", made)
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    found = SOURCES.make("torchvision", {"name": "SVHN", "root": str(tmp_path)}).load()
    assert np.array_equal(found.test_images[:], images)
    assert found.test_labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_pictures_that_are_replaced_in_place_are_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Imagenette

    on_disk(monkeypatch)
    folders = [
        tmp_path / "imagenette2" / split / name for split in ("train", "val") for name in Imagenette._WNID_TO_CLASS
    ]

    def loaded(seed: int) -> Any:
        for number, folder in enumerate(folders):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays(1, 100 * seed + number, (8, 8))[0]).save(folder / "a.JPEG")
        said = {"name": "Imagenette", "root": str(tmp_path), "cache": str(tmp_path / "cache")}
        return SOURCES.make("torchvision", said).load()

    first, second = loaded(1), loaded(2)
    assert not np.array_equal(first.test_images[:], second.test_images[:])
    kept = sorted((tmp_path / "cache").rglob("*"))
    said = {"name": "Imagenette", "root": str(tmp_path), "cache": str(tmp_path / "cache")}
    assert SOURCES.make("torchvision", said).load().digest == second.digest != first.digest
    assert sorted((tmp_path / "cache").rglob("*")) == kept


def test_a_grey_dataset_of_torchvision_becomes_rgb_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 4), ("t10k", 2)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        head = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(np.array([0x801, count], ">i4").tobytes() + labels.tobytes())
    found = SOURCES.make("torchvision", {"name": "MNIST", "root": str(tmp_path), "size": 32}).load()
    assert (found.train_images.shape, found.test_images.shape) == ((4, 32, 32, 3), (2, 32, 32, 3))
    assert np.ptp(found.test_images[:], axis=3).max() == 0


def test_a_dataset_of_the_hub_in_a_folder(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    features = library.Features({"picture": library.Image(), "what": library.ClassLabel(names=["a", "b", "c"])})
    splits = {}
    for split, count in (("train", 5), ("test", 3)):
        pictures_ = [Image.fromarray(image) for image in arrays(count, count)]
        columns = {"picture": pictures_, "what": [number % 3 for number in range(count)]}
        splits[split] = library.Dataset.from_dict(columns, features=features)
    library.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    found = SOURCES.make("huggingface", {"path": str(tmp_path / "saved")}).load()
    assert (found.classes, found.train_labels.tolist()) == (3, [0, 1, 2, 0, 1])
    assert np.array_equal(found.test_images[:], arrays(3, 3))
    with pytest.raises(ValueError, match=r"must name columns of .*: picture \(Image\), what \(ClassLabel\)"):
        SOURCES.make("huggingface", {"path": str(tmp_path / "saved"), "label": "y"}).load()
    with pytest.raises(ValueError, match="must have the splits train and validation"):
        SOURCES.make("huggingface", {"path": str(tmp_path / "saved"), "test": "validation"}).load()


def test_a_dataset_of_the_hubs_files_counts_the_classes_of_labels_that_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = library.Features({"picture": library.Image(), "what": library.Value("int64")})
    for split, count in (("train", 5), ("test", 3)):
        pictures_ = [Image.fromarray(image) for image in arrays(count, count)]
        made = library.Dataset.from_dict({"picture": pictures_, "what": list(range(count))}, features=features)
        (tmp_path / "hub").mkdir(exist_ok=True)
        made.to_parquet(tmp_path / "hub" / f"{split}-00000.parquet")
    found = SOURCES.make("huggingface", {"path": str(tmp_path / "hub"), "label": "what"}).load()
    assert (found.name, found.classes, found.test_labels.tolist()) == ("hub", 5, [0, 1, 2])
    assert np.array_equal(found.test_images[:], arrays(3, 3))


def test_corrupted_cifar_is_one_severity_behind_the_clean_train_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = Dataset("cifar10", 10, arrays(4, side=(32, 32)), np.arange(4), arrays(4, side=(32, 32)), np.arange(4))
    monkeypatch.setattr("mi_ray.data.Cifar10.load", lambda self: clean)
    np.save(
        tmp_path / "fog.npy",
        np.repeat(np.arange(5, dtype=np.uint8), 10_000)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8),
    )
    np.save(tmp_path / "labels.npy", np.arange(50_000) % 10)
    monkeypatch.setattr(clean.__class__, "__post_init__", lambda self: None)
    found = SOURCES.make("cifar_c", {"corruption": "fog", "severity": 4, "root": str(tmp_path)}).load()
    assert set(np.unique(found.test_images)) == {3}
    assert (found.name, len(found.test_labels)) == ("cifar10_c fog 4", 10_000)
    with pytest.raises(ValueError, match=r"cifar_c.corruption must name a file of CIFAR-10-C .*there is fog, labels"):
        SOURCES.make("cifar_c", {"corruption": "rain", "root": str(tmp_path)}).load()


def test_decoded_pixels_that_cannot_be_put_in_place_say_so_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, target: Path) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(Path, "rename", denied)
    with pytest.raises(PermissionError):
        written(tmp_path / "decoded", (2, 2), 1, iter([np.zeros((2, 2, 3), np.uint8)]))
    assert list(tmp_path.iterdir()) == []
