"""One interface, `Pyramid`, over what holds the pixels of a slide: OpenSlide, a Pillow picture or an array."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from superst_monai.data.pixels import Pixels, decoding, on_white, picture_to_rgb, require_memory
from superst_monai.errors import SlideError

_PICTURES = ((b"\xff\xd8\xff", "JPEG", JpegImageFile), (b"\x89PNG\r\n\x1a\n", "PNG", PngImageFile))
_PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error)
_PICTURE_BYTES = 12  # per pixel at the peak of decoding: two 4-byte Pillow planes, one array, slack
_ANCHORS = 128  # pixels that a read may start further left to begin on a whole level-0 pixel
_ON_PIXEL = 1 / 512  # [level px] offset below which OpenSlide does not interpolate


@dataclass(frozen=True)
class Facts:
    """What a file says of itself.

    Attributes:
        file: its name, for messages.
        reader: "openslide", "tifffile", "pillow" or "array".
        sizes: (width, height) of each level, largest first [level px].
        mpp: (x, y) [um per level-0 px] as stated, not yet judged; None where the file does not say both.
        mpp_from_tags: `mpp` comes from TIFF resolution tags, which often hold a print setting.
        vendor: scanner format, where known.
        objective: magnification, where known.
    """

    file: str
    reader: str
    sizes: tuple[tuple[int, int], ...]
    mpp: tuple[float, float] | None = None
    mpp_from_tags: bool = False
    vendor: str | None = None
    objective: float | None = None


class Pyramid(Protocol):
    """Levels of pixels that can be read by whole-pixel boxes."""

    facts: Facts

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Read a box that lies inside a level [level px]: `(height, width, 3)` on white; SlideError if damaged."""

    def close(self) -> None:
        """Release the file."""


class OpenSlidePyramid:
    """A file that OpenSlide opens.

    OpenSlide is asked by level-0 position and interpolates when that falls between the pixels of a level, as it does
    at downsamples such as 4.016. Reads therefore start at a nearby pixel of the level that sits on a whole level-0
    pixel, and return the stored values.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`; raises openslide.OpenSlideError where OpenSlide refuses it."""
        self._slide = openslide.OpenSlide(path)
        properties = dict(self._slide.properties)
        mpp = tuple(_number(properties.get(name)) for name in ("openslide.mpp-x", "openslide.mpp-y"))
        self.vendor = properties.get("openslide.vendor")
        self.comment = properties.get("openslide.comment") or properties.get("tiff.ImageDescription") or ""
        self.facts = Facts(
            file=path.name,
            reader="openslide",
            sizes=tuple(self._slide.level_dimensions),
            mpp=None if mpp[0] is None or mpp[1] is None else (mpp[0], mpp[1]),
            mpp_from_tags=self.vendor == "generic-tiff",
            vendor=self.vendor,
            objective=_number(properties.get("openslide.objective-power")),
        )

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Read a box of a level; see `Pyramid.read`."""
        downsample = self._slide.level_downsamples[level]
        (x_start, x_px0), (y_start, y_px0) = _anchor(x, downsample), _anchor(y, downsample)
        size = (width + x - x_start, height + y - y_start)
        with decoding(self.facts.file, (openslide.OpenSlideError,)):
            rgba = np.asarray(self._slide.read_region((x_px0, y_px0), level, size))
        rgba = rgba[y - y_start :, x - x_start :]  # (height, width, 4)
        return on_white(rgba[..., :3], rgba[..., 3])

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


class Decoded:
    """A plane decoded whole at its first use and kept; any number of threads may ask."""

    def __init__(self, decode: Callable[[], Pixels]) -> None:
        """Keep `decode` for the first use."""
        self._decode = decode
        self._pixels: Pixels | None = None
        self._lock = threading.Lock()

    def box(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Return a view `(height, width, 3)` of the plane."""
        with self._lock:
            if self._pixels is None:
                self._pixels = self._decode()
        return self._pixels[y : y + height, x : x + width]


class PicturePyramid:
    """A plain JPEG or PNG, decoded whole at the first read.

    Pillow's own limit on pixels guards `Image.open`; the two format classes are built directly, so that no global
    setting is touched, and the size is checked against the machine's memory instead. The dpi of a picture is a print
    setting, not a microscope's resolution, and is never taken as mpp. Rotation flags (EXIF) are not applied: pixels are
    as stored, which is what coordinates refer to.
    """

    def __init__(self, path: Path, kind: str, opener: Callable[[Path], ImageFile]) -> None:
        """Read the header of a `kind` file ("JPEG", "PNG") with Pillow's class for it."""
        with decoding(path.name, _PICTURE_ERRORS), opener(path) as picture:
            width, height = picture.size
        what = f"{path.name} is {width} x {height} px; a {kind} is decoded whole, which"
        advice = "convert it to a tiled pyramid (vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg)"
        require_memory(width * height * _PICTURE_BYTES, what, advice)
        self._path, self._opener = path, opener
        self._plane = Decoded(self._decode)
        self.facts = Facts(path.name, "pillow", ((width, height),))

    def _decode(self) -> Pixels:
        with decoding(self._path.name, _PICTURE_ERRORS), self._opener(self._path) as picture:
            return picture_to_rgb(picture)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Read a box; see `Pyramid.read`."""
        return self._plane.box(x, y, width, height)

    def close(self) -> None:
        """Drop the decoded pixels."""
        self._plane = Decoded(self._decode)


class ArrayPyramid:
    """Pixels that are in memory already, `(H, W, 3)` uint8."""

    def __init__(self, image: Pixels, name: str) -> None:
        """Keep `image` without a copy."""
        self._image = image
        self.facts = Facts(name, "array", ((image.shape[1], image.shape[0]),))

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return a view of a box; see `Pyramid.read`."""
        return self._image[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing to release."""


def open_picture(path: Path, head: bytes) -> PicturePyramid | None:
    """Open `path` if its first bytes are those of a JPEG or PNG, else None."""
    for magic, kind, opener in _PICTURES:
        if head.startswith(magic):
            return PicturePyramid(path, kind, opener)
    return None


def dicom_instance(folder: Path) -> Path:
    """Choose the file of a DICOM folder to hand to OpenSlide, which finds the rest of the series itself.

    Raises:
        SlideError: the folder holds no DICOM file, or files of more than one series.
    """
    series = {file: uid for file in sorted(folder.iterdir()) if file.is_file() and (uid := _series_uid(file))}
    if len(set(series.values())) == 1:
        return next(iter(series))
    raise SlideError(
        f"a folder given as a slide must hold the DICOM files of one series, but {folder.name} holds "
        f"{len(set(series.values()))} series; pass one file of the slide itself (for MRXS the .mrxs file)."
    )


def _series_uid(file: Path) -> bytes | None:
    """SeriesInstanceUID (0020,000E) from the head of a DICOM file (explicit little endian), None for other files."""
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
    _, tag, value = head.partition(b"\x20\x00\x0e\x00UI")
    if head[128:132] != b"DICM" or not tag:
        return None
    return value[2 : 2 + int.from_bytes(value[:2], "little")]


def _anchor(position: int, downsample: float) -> tuple[int, int]:
    """Find a pixel of a level, at or shortly before `position`, and the whole level-0 pixel it begins at."""
    tried: NDArray[np.int64] = position - np.arange(min(_ANCHORS, position + 1))
    px0 = np.rint(tried * downsample)
    offset = np.abs(px0 / downsample - tried)
    best = int(np.argmax(offset < _ON_PIXEL)) if (offset < _ON_PIXEL).any() else int(offset.argmin())
    return int(tried[best]), int(px0[best])


def _number(text: str | None) -> float | None:
    """Parse a property; None where absent or no number."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
