"""Images that stay on disk: what a dataset of many large pictures is read from, a few at a time."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Places = Sequence[int] | npt.NDArray[Any]


def image_hash(image: npt.NDArray[np.uint8]) -> bytes:
    """A hash of the pixels of one image, uint8 [C, H, W]."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class DiskImages:
    """uint8 [N, H, W, 3] in a file of raw pixels; indexing reads what is asked for, and nothing is kept.

    folder: has the file, and a hash of each image. side: (H, W). places: which images of the file these are, in order. It
    travels between processes as these three values, so that the folder must be one that all of them see.
    """

    folder: str
    side: tuple[int, int]
    places: npt.NDArray[np.int64]

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, 3]."""
        return (len(self.places), *self.side, 3)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, wanted: slice | Places) -> npt.NDArray[np.uint8]:
        """Read some images, uint8 [K, H, W, 3]. Raises OSError where the file is gone or cut short."""
        places = self.places[wanted]
        found = np.empty((len(places), *self.side, 3), np.uint8)
        size = found[:1].nbytes
        with (Path(self.folder) / "pixels").open("rb") as file:
            for image, place in zip(found, places.tolist(), strict=True):
                if os.preadv(file.fileno(), [image.data.cast("B")], place * size) != size:
                    raise OSError(f"{file.name} must hold {len(self.places)} images; it was cut short")
        return found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All of them in memory."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def take(self, wanted: Places) -> "DiskImages":
        """Some of them, which stay on disk as well."""
        return DiskImages(self.folder, self.side, self.places[np.asarray(wanted)])

    @cached_property
    def hashes(self) -> list[bytes]:
        """`image_hash` of each, as it was when the file was written."""
        every = np.fromfile(Path(self.folder) / "hashes", np.uint8).reshape(-1, 16)
        return [row.tobytes() for row in every[self.places]]


Pictures = npt.NDArray[np.uint8] | DiskImages


def chosen(images: Any, wanted: Places) -> Any:
    """Some images of a dataset, in an array or on disk as they were."""
    return images.take(wanted) if isinstance(images, DiskImages) else images[np.asarray(wanted)]


def written(folder: Path, side: tuple[int, int], count: int, images: Iterable[npt.NDArray[np.uint8]]) -> DiskImages:
    """Images written to a folder, or found there from an earlier time.

    images: `count` arrays uint8 [H, W, 3], gone through once and only where they are not there yet. The folder appears
    when all of it is written, so that a run that was stopped leaves nothing that looks whole.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            with (made / "pixels").open("wb") as pixels, (made / "hashes").open("wb") as hashes:
                for image in images:
                    pixels.write(image.tobytes())
                    hashes.write(image_hash(np.ascontiguousarray(np.moveaxis(image, -1, 0))))
        except BaseException:
            shutil.rmtree(made)
            raise
        made.chmod(0o755)  # A temporary folder is its maker's alone, and others of the same machines may read these.
        try:
            made.rename(folder)
        except OSError:
            shutil.rmtree(made)
            if not folder.is_dir():  # Else another process has written the same in the meantime.
                raise
    return DiskImages(str(folder), side, np.arange(count))
