"""Label images in files: TIFF, PNG and npy, read box by box where the file allows it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from superst_monai.data.pixels import decoding, require_memory
from superst_monai.errors import ShapeError, SlideError
from superst_monai.inference.sample_tiles import Place

LABEL_SUFFIXES = (".tif", ".tiff", ".png", ".npy")
_ERRORS = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, EOFError),
    *(SyntaxError, RuntimeError, ImportError, struct.error),
)


class Raster(Protocol):
    """An image of which boxes can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width."""

    def __getitem__(self, place: Place) -> Any:
        """Read a box."""


class _File:
    """Pixels of an open file; what its decoder cannot read is a SlideError that names it."""

    def __init__(self, name: str, pixels: Any) -> None:
        self._name, self._pixels = name, pixels
        self.shape: tuple[int, ...] = tuple(pixels.shape)

    def __getitem__(self, place: Place) -> NDArray[Any]:
        with decoding(self._name, _ERRORS):
            return np.asarray(self._pixels[place])


@contextmanager
def open_labels(path: Path) -> Iterator[Raster]:
    """Open a label image: TIFF (tile by tile, if it has tiles), PNG or npy.

    Raises:
        SlideError: the file cannot be read, has another suffix, or must be decoded whole and does not fit in memory.
        ShapeError: it is no image `(h, w)` of integers.
    """
    with ExitStack() as stack:
        with decoding(path.name, _ERRORS):
            pixels = _open(path, stack)
        if len(pixels.shape) != 2 or pixels.dtype.kind not in "iu":
            raise ShapeError(
                f"label image {path.name} must hold one integer a pixel, (height, width), got {tuple(pixels.shape)} "
                f"{pixels.dtype}; export labels, not colours or a mask."
            )
        yield _File(path.name, pixels)


def _open(path: Path, stack: ExitStack) -> Any:
    """An array, in memory or on disk, whatever it holds."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if suffix == ".png":
        with PngImageFile(path) as picture:  # as in data.slide_backends: the machine's memory is the limit
            _require(path, picture.width * picture.height * 4)
            return np.asarray(picture)
    if suffix not in LABEL_SUFFIXES:
        raise SlideError(
            f"a label image must end in {', '.join(LABEL_SUFFIXES)}, got {path}; export it as one of them."
        )
    series = stack.enter_context(tifffile.TiffFile(path)).series[0]
    if series.keyframe.is_tiled:
        return zarr.open_array(series.aszarr(level=0), mode="r")
    _require(path, series.nbytes)
    return series.asarray()


def _require(path: Path, n_bytes: int) -> None:
    require_memory(n_bytes, f"{path.name}, which is decoded whole,", "save it as a tiled TIFF")
