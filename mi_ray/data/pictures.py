"""Datasets of pictures of any size: folders, torchvision, the Hugging Face hub, and corrupted copies of CIFAR.

What takes more than `IN_MEMORY` bytes is decoded once into a file of pixels and read from there.
"""

import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from mi_ray.data.arrays import Cifar10, Cifar100, in_rgb
from mi_ray.data.base import SOURCES, Dataset, Labels, Source
from mi_ray.data.disk_images import Pictures, written
from mi_ray.own_code import first_line
from mi_ray.parameters import choice, flag, integer, text

IN_MEMORY = 2**30  # Bytes of a split that are kept as an array.
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
DECODING = 2  # Raise it when the same files give other pixels: what was decoded before is left alone then.
AT_ONCE = 256  # Pictures that are decoded together.
Read = Callable[[int], Any]  # The number of a picture -> a PIL image.


@dataclass(frozen=True)
class _Pictures(Source):
    """Pictures that are brought to one size. The rule is in every key, since it decides the pixels."""

    short: ClassVar[str] = "path"  # The parameter that is meant where a file gives one text alone.
    size: int = integer(
        "the side in pixels to which pictures are resized; left out, all have one size", None, low=1, high=4096
    )
    fit: Literal["crop", "squash"] = choice(
        "crop: the shorter side becomes `resize`, and the middle is cut out; squash: each side becomes `size`",
        ("crop", "squash"),
        "crop",
    )
    resize: int = integer(
        "the shorter side before the middle is cut out, as in 256 for 224; `size` when left out", None
    )
    cache: str = text("folder for decoded pixels of large splits, which all machines share; ~/.cache/mi_ray", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise ValueError(f"{self.name}.resize must be at least `size`, {self.size}; got {self.resize}")
        if self.resize is not None and self.fit == "squash":
            raise ValueError(
                f"{self.name}.resize must be left out with `fit: squash`, which cuts nothing out; got {self.resize}"
            )

    @classmethod
    def as_mapping(cls, written: object) -> Any:
        """`{imagefolder: DIR}` is short for `{imagefolder: {path: DIR}}`."""
        return {cls.short: written} if isinstance(written, str) else super().as_mapping(written)

    def _fitted(self, picture: Any) -> npt.NDArray[np.uint8]:
        """A PIL image as uint8 [H, W, 3], bilinearly and averaged where it shrinks."""
        from PIL.Image import Resampling

        picture = in_rgb(picture)
        if self.size is None:
            return np.asarray(picture)
        if self.fit == "squash":
            return np.asarray(picture.resize((self.size, self.size), Resampling.BILINEAR))
        width, height = picture.size
        shorter, now = self.resize or self.size, min(width, height)
        large = (shorter * width // now, shorter * height // now)  # as torchvision's Resize and CenterCrop do
        left, top = (round((side - self.size) / 2) for side in large)
        box = (left, top, left + self.size, top + self.size)
        return np.asarray(picture.resize(large, Resampling.BILINEAR).crop(box))

    def _gathered(self, names: Sequence[str], read: Read, identity: object) -> Pictures:
        """All pictures of a split. names: what errors call each. identity: what tells this content from any other."""
        if not names:
            raise ValueError(f"{self.name}: a split must hold pictures; got none")

        def decoded(number: int) -> npt.NDArray[np.uint8]:
            """The pixels of a picture. PIL has many errors for a file that is no image; the file's name is what helps."""
            try:
                return self._fitted(read(number))
            except Exception as error:
                raise ValueError(f"{names[number]} must be a picture that PIL can decode: {error}") from error

        first = decoded(0)
        side = (first.shape[0], first.shape[1])
        images = _of_side(side, names, _in_threads(decoded, len(names)))
        if first.nbytes * len(names) <= IN_MEMORY:
            return np.stack(list(images))
        rule = repr((DECODING, self.name, identity, self.size, self.fit, self.resize))
        place = self._kept() / hashlib.sha256(rule.encode()).hexdigest()[:24]
        return written(place, side, len(names), images)

    def _kept(self) -> Path:
        """The folder of decoded pixels."""
        return Path(self.cache or "~/.cache/mi_ray").expanduser().resolve()


def _in_threads(decoded: Callable[[int], npt.NDArray[np.uint8]], count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Decode all pictures in order, few at a time, so that memory holds few."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, count, AT_ONCE):
            yield from pool.map(decoded, range(first, min(first + AT_ONCE, count)))


def _of_side(
    side: tuple[int, int], names: Sequence[str], images: Iterable[npt.NDArray[np.uint8]]
) -> Iterator[npt.NDArray[np.uint8]]:
    for name, image in zip(names, images, strict=True):
        if image.shape[:2] != side:
            raise ValueError(
                f"pictures must all have one size, or be given one with `size:`; {names[0]} has {list(side)} pixels, "
                f"{name} {list(image.shape[:2])}"
            )
        yield image


@final
@SOURCES.register
@dataclass(frozen=True)
class ImageFolder(_Pictures):
    """Folders `train/CLASS/…` and `test/CLASS/…` (or `val/CLASS/…`) of pictures; classes are sorted by name."""

    name: ClassVar[str] = "imagefolder"
    path: str = text("the folder that holds train and test", "data")

    def load(self) -> Dataset:
        """Both splits. Raises ValueError naming the folder that is missing, or the file that is no picture."""
        root = Path(self.path)
        tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
        if not (root / "train").is_dir() or not tests:
            raise ValueError(
                f"imagefolder must hold train/CLASS and test/CLASS (or val/CLASS); {root.resolve()} does not"
            )
        classes = _folders(root / "train")
        unknown = sorted(set(_folders(tests[0])) - set(classes))
        if unknown or not classes:
            raise ValueError(f"{tests[0]} must hold classes of {root / 'train'}; it has {', '.join(unknown) or 'none'}")
        (train, train_labels), (test, labels) = (self._split(folder, classes) for folder in (root / "train", tests[0]))
        return Dataset(root.resolve().name, len(classes), train, train_labels, test, labels)

    def _split(self, folder: Path, classes: Sequence[str]) -> tuple[Pictures, Labels]:
        found = [
            (label, file)
            for label, name in enumerate(classes)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in ENDINGS and not _hidden(file, folder / name)
        ]
        having = {label for label, _ in found}
        if empty := [name for label, name in enumerate(classes) if label not in having]:
            raise ValueError(f"{folder} must have images of each class; {empty[0]} has none")
        files = [file for _, file in found]
        about = _as_they_are(files)
        images = self._gathered([str(file) for file in files], lambda number: _opened(files[number]), about)
        return images, np.array([label for label, _ in found], np.int64)


def _folders(root: Path) -> list[str]:
    """The classes: folders, but for hidden ones, which programs leave beside a person's own."""
    return sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))


def _hidden(file: Path, folder: Path) -> bool:
    """Whether a file, or a folder on the way to it, is hidden, as programs leave copies beside a person's own."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _as_they_are(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """What tells files from others of their names, wherever these are, without reading them."""
    return [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _opened(file: Path) -> Any:
    from PIL import Image

    with Image.open(file) as picture:
        picture.load()
        return picture


SPLITS: dict[str, tuple[str, Any, Any]] = {  # torchvision's classes: (argument, its value for training, for testing)
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"), ("train", True, False)),
    **dict.fromkeys(("SVHN", "STL10", "GTSRB", "Food101", "Flowers102", "DTD", "PCAM"), ("split", "train", "test")),
    **dict.fromkeys(("FGVCAircraft", "StanfordCars", "RenderedSST2"), ("split", "train", "test")),
    **dict.fromkeys(("ImageNet", "Imagenette", "Country211"), ("split", "train", "val")),
    "OxfordIIITPet": ("split", "trainval", "test"),
}


@final
@SOURCES.register
@dataclass(frozen=True)
class TorchvisionDataset(_Pictures):
    """A dataset of torchvision.datasets, such as SVHN, STL10 or CIFAR100."""

    name: ClassVar[str] = "torchvision"
    short: ClassVar[str] = "dataset"
    dataset: str = choice("its class", tuple(SPLITS), "CIFAR10")
    root: str = text("folder that holds, or will hold, torchvision's copy", "data")
    download: bool = flag("fetch it with torchvision when it is absent", False)

    @classmethod
    def as_mapping(cls, written: object) -> Any:
        """`{torchvision: SVHN}` and `{torchvision: {name: SVHN}}` both name the class."""
        if isinstance(written, dict) and "name" in written:
            written = {"dataset": written["name"], **{key: value for key, value in written.items() if key != "name"}}
        return super().as_mapping(written)

    def load(self) -> Dataset:
        """Both splits through torchvision. Raises ValueError when absent, saying how to get it."""
        make = getattr(importlib.import_module("torchvision.datasets"), self.dataset)
        argument, *values = SPLITS[self.dataset]
        try:
            kept = {"download": self.download} if self.dataset != "ImageNet" else {}
            splits = [make(self.root, **{argument: value}, **kept) for value in values]
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(
                f"{self.dataset} must be in {Path(self.root).resolve()} as torchvision keeps it ({error}). Remedy: "
                f"`dataset: {{torchvision: {{name: {self.dataset}, root: {self.root}, download: true}}}}` on a machine with "
                "a network"
            ) from error
        return self._dataset(
            self.dataset, [self._split(split, value) for split, value in zip(splits, values, strict=True)]
        )

    def _split(self, split: Any, value: object) -> tuple[Pictures, Labels]:
        labels = [int(split[number][1]) for number in range(len(split))] if _labels(split) is None else _labels(split)
        names = [f"{self.dataset}, {value}, picture {number}" for number in range(len(split))]
        files = sorted(
            file
            for file in Path(self.root).resolve().rglob("*")
            if file.is_file() and not file.is_relative_to(self._kept())
        )
        about = (self.dataset, value, len(split), _as_they_are(files))
        return self._gathered(names, lambda number: split[number][0], about), np.asarray(labels, np.int64)

    def _dataset(self, name: str, splits: Sequence[tuple[Pictures, Labels]]) -> Dataset:
        (train, train_labels), (test, labels) = splits
        return Dataset(name, int(max(train_labels.max(), labels.max())) + 1, train, train_labels, test, labels)


def _labels(split: Any) -> Any:
    """The labels that a dataset of torchvision keeps in one list, under whichever name; None where it keeps none."""
    found = (getattr(split, name, None) for name in ("targets", "labels", "_labels"))
    return next((each for each in found if each is not None), None)


@final
@SOURCES.register
@dataclass(frozen=True)
class HuggingFaceDataset(_Pictures):
    """A dataset of the Hugging Face hub, from its cache, a download or a folder that `save_to_disk` wrote."""

    name: ClassVar[str] = "huggingface"
    path: str = text("a repository, org/name, or a folder", "cifar10")
    config: str = text("the repository's configuration, where it has several", None)
    train: str = text("the split that is trained on and mixed in", "train")
    test: str = text("the split that is attacked", "test")
    image: str = text("the column of pictures; the first of their type when left out", None)
    label: str = text("the column of labels; the first with classes when left out", None)

    def load(self) -> Dataset:
        """Both splits. Raises ValueError where they are not there, saying what to install or where to look."""
        try:
            library = importlib.import_module("datasets")
        except ImportError as error:
            raise ValueError("datasets must be installed: pip install 'mi-ray[data]'") from error
        try:
            folder = Path(self.path)
            saved = (folder / "dataset_dict.json").is_file()
            every = library.load_from_disk(self.path) if saved else library.load_dataset(self.path, self.config)
            splits = [every[split] for split in (self.train, self.test)]
        except Exception as error:  # Its errors are of many kinds, some of other libraries.
            raise ValueError(
                f"huggingface's dataset {self.path} must have the splits {self.train} and {self.test}, in a folder, in the "
                f"hub's cache ($HF_HOME) or behind a network: {first_line(error)}"
            ) from error
        image, label = self._columns(splits[0])
        parts = [self._split(split, image, label) for split in splits]
        classes = getattr(splits[0].features[label], "num_classes", None) or 1 + int(max(y.max() for _, y in parts))
        return Dataset(folder.name, classes, parts[0][0], parts[0][1], parts[1][0], parts[1][1])

    def _columns(self, split: Any) -> tuple[str, str]:
        kinds = {column: type(feature).__name__ for column, feature in split.features.items()}
        image = self.image or next((column for column, kind in kinds.items() if kind == "Image"), None)
        label = self.label or next((column for column, kind in kinds.items() if kind == "ClassLabel"), None)
        if image is None or label is None or not {image, label} <= set(kinds):
            raise ValueError(
                f"huggingface.image and huggingface.label must name columns of {self.path}: "
                f"{', '.join(f'{column} ({kind})' for column, kind in kinds.items())}"
            )
        return image, label

    def _split(self, split: Any, image: str, label: str) -> tuple[Pictures, Labels]:
        names = [f"{self.path}, {split.split}, picture {number}" for number in range(len(split))]
        images = self._gathered(names, lambda number: split[number][image], (self.path, split._fingerprint, image))
        return images, np.asarray(split[label], np.int64)


@final
@SOURCES.register
@dataclass(frozen=True)
class CifarCorrupted(Source):
    """CIFAR-10-C or CIFAR-100-C (Hendrycks and Dietterich, 2019): one corruption of the test split, at one severity."""

    name: ClassVar[str] = "cifar_c"
    corruption: str = text("the file without its ending, as in fog")
    severity: int = integer("how strong it is", 3, low=1, high=5)
    classes: str = choice("10: of CIFAR-10; 100: of CIFAR-100", ("10", "100"), "10")
    root: str = text("the folder with fog.npy and labels.npy", "data/CIFAR-10-C")
    clean: str = text("folder of torchvision's CIFAR, whose train split is trained on and mixed in", "data")

    def load(self) -> Dataset:
        """The clean train split, and the corrupted test split."""
        clean = (Cifar10 if self.classes == "10" else Cifar100)(root=self.clean).load()
        wanted, arrays = slice(10_000 * (self.severity - 1), 10_000 * self.severity), []
        for file in (Path(self.root) / f"{self.corruption}.npy", Path(self.root) / "labels.npy"):
            try:
                arrays.append(np.array(np.load(file, mmap_mode="r", allow_pickle=False)[wanted]))
            except (OSError, ValueError) as error:
                there = ", ".join(sorted(each.stem for each in Path(self.root).glob("*.npy"))) or "nothing"
                raise ValueError(
                    f"cifar_c.corruption must name a file of CIFAR-{self.classes}-C (zenodo.org/records/2535967 and "
                    f"3555552), {file.resolve()}: {error}; there is {there}"
                ) from error
        name = f"{clean.name}_c {self.corruption} {self.severity}"
        images, labels = arrays[0], arrays[1].astype(np.int64)
        return Dataset(name, clean.classes, clean.train_images, clean.train_labels, images, labels)
