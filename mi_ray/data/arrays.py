"""Datasets that are read as arrays: digits, CIFAR, Parquet files of encoded pictures, NumPy archives."""

import importlib.util
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float

from mi_ray.data.base import SOURCES, Dataset, Images, Labels, Source, whole_labels
from mi_ray.parameters import flag, text


@final
@SOURCES.register
@dataclass(frozen=True)
class Digits(Source):
    """scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels), enlarged to 32x32x3: 1,297 train, 500 test.

    They are real images that every installation has. They are enlarged bilinearly. The split is stratified by label; it
    was drawn once and lies in digits_split.json, so that no version of scikit-learn can draw another one.
    """

    name: ClassVar[str] = "digits"

    def load(self) -> Dataset:
        """The dataset; nothing is read from outside the installed packages."""
        images, labels, train, test = _digits()
        return Dataset("digits", 10, images[train], labels[train], images[test], labels[test])


@cache
def _digits() -> tuple[Images, Labels, list[int], list[int]]:
    """All images and labels, and which of them are train and test: every study that a process prepares picks copies of these."""
    table = _digits_table()
    grey = torch.from_numpy(table[:, :-1].reshape(-1, 8, 8)).float().div(16)[:, None]
    large = torch.nn.functional.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    images = large.mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    split = json.loads((Path(__file__).parent / "digits_split.json").read_text(encoding="utf-8"))
    return images, table[:, -1].astype(np.int64), split["train"], split["test"]


def _digits_table() -> Float[np.ndarray, "1797 65"]:
    """scikit-learn's table of digits: 64 grey levels in 0..16 and the label.

    Its file is read without importing scikit-learn, which would cost every process more time than all else that a plan
    of digits needs; where a version keeps it elsewhere, scikit-learn is asked.
    """
    spec = importlib.util.find_spec("sklearn")
    places = spec.submodule_search_locations if spec else None
    file = Path(next(iter(places or ["."])), "datasets", "data", "digits.csv.gz")
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    return np.column_stack([data, labels])


@dataclass(frozen=True)
class _Cifar(Source):
    root: str = text("folder that holds, or will hold, torchvision's copy", "data")
    download: bool = flag("fetch it with torchvision when it is absent", False)
    torchvision_class: ClassVar[str]
    classes: ClassVar[int]
    folder: ClassVar[str]

    def load(self) -> Dataset:
        """Both splits through torchvision. Raises ValueError when absent, saying how to get it."""
        import torchvision.datasets

        make = getattr(torchvision.datasets, self.torchvision_class)
        try:
            train, test = (make(self.root, train=is_train, download=self.download) for is_train in (True, False))
        except (RuntimeError, OSError) as error:
            tried = f"; fetching it failed: {error}" if self.download else ""
            raise ValueError(
                f"{self.name} must be in {Path(self.root).resolve() / self.folder}{tried}. Remedy: "
                f"`dataset: {{{self.name}: {{root: {self.root}, download: true}}}}` on a machine with a network, or "
                f"name another copy with {{parquet: folder}} or {{npz: file}}"
            ) from error
        arrays = (
            train.data,
            np.asarray(train.targets, np.int64),
            test.data,
            np.asarray(test.targets, np.int64),
        )
        return Dataset(self.name, self.classes, *arrays)


@final
@SOURCES.register
@dataclass(frozen=True)
class Cifar10(_Cifar):
    """CIFAR-10 through torchvision: 50,000 train, 10,000 test (Krizhevsky, 2009)."""

    name: ClassVar[str] = "cifar10"
    torchvision_class: ClassVar[str] = "CIFAR10"
    classes: ClassVar[int] = 10
    folder: ClassVar[str] = "cifar-10-batches-py"


@final
@SOURCES.register
@dataclass(frozen=True)
class Cifar100(_Cifar):
    """CIFAR-100 (fine labels) through torchvision: 50,000 train, 10,000 test (Krizhevsky, 2009)."""

    name: ClassVar[str] = "cifar100"
    torchvision_class: ClassVar[str] = "CIFAR100"
    classes: ClassVar[int] = 100
    folder: ClassVar[str] = "cifar-100-python"


@final
@SOURCES.register
@dataclass(frozen=True)
class ParquetFolder(Source):
    """A folder of Parquet files in Hugging Face's image layout: `train*.parquet` and `test*.parquet`, a struct column
    with encoded pictures in `bytes`, and an integer label column."""

    name: ClassVar[str] = "parquet"
    path: str = text("the folder; its subfolders are searched too")
    label: str = text("the label column; default: label, else fine_label", None)

    def _files(self, split: str) -> list[Path]:
        folder = Path(self.path)
        files = sorted(folder.rglob(f"{split}*.parquet"))
        if not files:
            state = "holds none" if folder.is_dir() else "is not a folder"
            raise ValueError(f"a parquet dataset must hold {split}*.parquet; {folder.resolve()} {state}")
        return files

    def _split(self, split: str) -> tuple[Images, Labels]:
        images: list[npt.NDArray[np.uint8]] = []
        labels: list[Labels] = []
        for file in self._files(split):
            try:
                table = pq.read_table(file)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} must be a Parquet file; it is none, or it is cut short") from error
            column, label = self._columns(file, table.schema)
            labels.append(whole_labels(f"{file}: {label}", table.column(label).to_numpy()))
            pictures = table.column(column).combine_chunks().field("bytes")
            images.extend(_decode(file, row, picture.as_py()) for row, picture in enumerate(pictures))
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise ValueError(f"{self.path}: the pictures of {split} must all have one size; got {sorted(shapes)[:5]}")
        return np.stack(images), np.concatenate(labels)

    def _columns(self, file: Path, schema: pa.Schema) -> tuple[str, str]:
        pictures = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
        wanted = [self.label] if self.label else ["label", "fine_label"]
        labels = [name for name in wanted if name in schema.names and pa.types.is_integer(schema.field(name).type)]
        if not pictures or not labels:
            raise ValueError(
                f"{file} must have a struct column with `bytes` and an integer column {' or '.join(wanted)}; "
                f"it has {', '.join(f'{f.name}: {f.type}' for f in schema)}"
            )
        return pictures[0], labels[0]

    def load(self) -> Dataset:
        """Both splits, decoded. Raises ValueError naming the file and the row of a picture that cannot be read."""
        (train, train_labels), (test, test_labels) = self._split("train"), self._split("test")
        classes = int(max(train_labels.max(), test_labels.max())) + 1
        return Dataset(Path(self.path).name, classes, train, train_labels, test, test_labels)


def in_rgb(picture: Any) -> Any:
    """A PIL image with three channels of 8 bits; a grey one of 16 bits is scaled to these.

    Raises ValueError for pixels that are whole numbers of 32 bits or floating-point numbers: nobody says what is white.
    """
    from PIL import Image

    of_16_bits = picture.mode == "I" and picture.format in ("PNG", "PPM")  # which some versions of PIL open so
    if picture.mode.startswith("I;16") or of_16_bits:
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if picture.mode in ("I", "F"):
        kind = {"I": "32-bit whole", "F": "floating-point"}[picture.mode]
        raise ValueError(
            f"its pixels are {kind} numbers, of which nothing says what is white; save it with 8 or 16 bits"
        )
    return picture.convert("RGB")


def _decode(file: Path, row: int, picture: bytes | None) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(picture or b"")) as opened:
            return np.asarray(in_rgb(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}, row {row} must hold a picture that PIL can decode: {error}") from error


@final
@SOURCES.register
@dataclass(frozen=True)
class Npz(Source):
    """A NumPy archive with x_train, y_train, x_test, y_test; images uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W]."""

    name: ClassVar[str] = "npz"
    path: str = text("the .npz file")

    def load(self) -> Dataset:
        """Both splits. Raises ValueError when an array is missing or is not what it must be."""
        try:
            with Path(self.path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
        except OSError as error:
            raise ValueError(
                f"{self.path} must be a readable .npz archive: {error.strerror or 'it is damaged'}"
            ) from error
        # A lone .npy array is no archive and no context manager, which gives a TypeError or an AttributeError.
        except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{self.path} must be a readable .npz archive of plain arrays, without pickles; it is none"
            ) from error
        missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]
        if missing:
            raise ValueError(f"{self.path} must hold x_train, y_train, x_test, y_test; it lacks {', '.join(missing)}")
        labels = [whole_labels(f"{self.path}: y_{split}", arrays[f"y_{split}"]) for split in ("train", "test")]
        images = [_rgb(arrays[f"x_{split}"]) for split in ("train", "test")]
        classes = int(max(label.max() for label in labels)) + 1
        return Dataset(Path(self.path).stem, classes, images[0], labels[0], images[1], labels[1])


def _rgb(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    grey = images[..., None] if images.ndim == 3 else images
    return np.repeat(grey, 3, axis=-1) if grey.ndim == 4 and grey.shape[-1] == 1 else grey
