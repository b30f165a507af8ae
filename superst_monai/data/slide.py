"""A slide: opens any H&E image file and reads a Region of it at any resolution, on white, without aliasing."""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import openslide
from numpy.typing import NDArray

from superst_monai.data.pixels import Pixels, decoding, require_memory
from superst_monai.data.resample import MARGIN, resample, to_uint8
from superst_monai.data.slide_backends import ArrayPyramid, OpenSlidePyramid, Pyramid, dicom_instance, open_picture
from superst_monai.data.slide_mpp import check_mpp, choose_mpp
from superst_monai.data.slide_tiff import TIFF_MAGIC, TiffPyramid
from superst_monai.errors import ResolutionError, ShapeError, SlideError
from superst_monai.types import Region

_BLOCK_PX = 1024  # [source px] side of the block that one step of a read holds; larger ones fall out of the CPU cache
_BYTES = 15  # of memory per source px of a block: RGB in uint8 and in float32
_COARSER = 1.005  # a level this much coarser than asked still serves: level sizes are rounded to whole pixels
_SNAP = 1e-9  # [px] float noise of a position


class Slide:
    """An open H&E image with a known resolution; a context manager.

    Frame: level-0 pixel i covers [i, i + 1). A level whose size is the slide's over a power of two, rounded up or down,
    was made by averaging whole blocks, so that its downsample is that power on both axes; otherwise it is the ratio of
    the sizes, per axis. (OpenSlide's one mean ratio, 4.016 for 300 x 250 -> 75 x 62, would shift pixels.)

    Threads may share a slide: reads do not change it (OpenSlide is thread-safe, whole-plane decoding and hashing are
    locked), but close it only when no read runs. Processes may not: open one in each, after the fork.

    Attributes:
        name: file name without its suffix.
        width_px0: width of level 0 [px].
        height_px0: height of level 0 [px].
        mpp_x: horizontal resolution [um per level-0 px].
        mpp_y: vertical resolution [um per level-0 px].
    """

    def __init__(
        self, pyramid: Pyramid, *, name: str, mpp_x: float, mpp_y: float, mpp_source: str, path: Path | None = None
    ) -> None:
        """Wrap open pixels; use `Slide.open` or `Slide.from_array`."""
        self.name, self.mpp_x, self.mpp_y = name, mpp_x, mpp_y
        self.width_px0, self.height_px0 = pyramid.facts.sizes[0]
        self._pyramid: Pyramid | None = pyramid
        self._facts, self._mpp_source, self._path = pyramid.facts, mpp_source, path
        self._downsamples = [_downsample(pyramid.facts.sizes[0], size) for size in pyramid.facts.sizes]
        self._sha256: str | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, *, mpp: float | None = None, fallback_mpp: float | None = None) -> Self:
        """Open whatever OpenSlide opens, and plain JPEG, PNG and TIFF.

        A DICOM slide is given by any file of its series or by the folder that holds them.

        Args:
            path: the image.
            mpp: resolution [um per level-0 px]; overrules the file.
            fallback_mpp: resolution that something else implies (an assay's spot pitch), used where the file is silent.
                The dpi of JPEG and PNG, TIFF tags that hold a print setting (72, 96, 300 dpi ...) and values outside
                0.01..100 um count as silence.

        Raises:
            SlideError: no such file, not an image, damaged, or larger than memory where it must be decoded whole.
            ResolutionError: nobody states a plausible resolution.
        """
        path = Path(path)
        if not path.exists():
            raise SlideError(f"the slide must exist, but there is no {path}; check the path.")
        path = dicom_instance(path) if path.is_dir() else path
        pyramid = _open_pyramid(path)
        try:
            mpp_x, mpp_y, source = choose_mpp(pyramid.facts, mpp, fallback_mpp)
        except ResolutionError:
            pyramid.close()
            raise
        return cls(pyramid, name=path.stem, mpp_x=mpp_x, mpp_y=mpp_y, mpp_source=source, path=path)

    @classmethod
    def from_array(cls, image: Pixels, *, mpp: float, name: str) -> Self:
        """Wrap an image in memory, `(H, W, 3)` uint8, of resolution `mpp` [um/px]; its pixels are not copied.

        Raises:
            ShapeError: not a non-empty `(H, W, 3)` uint8 array.
            ResolutionError: mpp outside 0.01..100.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ShapeError(
                f"image {name} must be a non-empty (H, W, 3) uint8 array, got {image.shape} {image.dtype}; "
                "convert it to 8-bit RGB."
            )
        mpp = check_mpp(mpp, f"mpp= for {name}")
        return cls(ArrayPyramid(image, name), name=name, mpp_x=mpp, mpp_y=mpp, mpp_source="caller")

    @property
    def properties(self) -> dict[str, str | int | float | None]:
        """What identifies the slide: reader, vendor, resolution and where it is from, size, file name and its hash.

        `sha256` is of the named file (of several, as in MRXS or DICOM, only that one), or of an array's bytes; the file
        is streamed once, at the first access.
        """
        with self._lock:
            if self._sha256 is None:
                self._sha256 = self._hash()
        return {
            "vendor": self._facts.vendor,
            "objective": self._facts.objective,
            "mpp_x": self.mpp_x,
            "mpp_y": self.mpp_y,
            "mpp_source": self._mpp_source,
            "width_px0": self.width_px0,
            "height_px0": self.height_px0,
            "levels": len(self._facts.sizes),
            "reader": self._facts.reader,
            "file": None if self._path is None else self._path.name,
            "sha256": self._sha256,
        }

    def whole(self) -> Region:
        """Return the Region of the full slide."""
        return Region(0.0, 0.0, float(self.width_px0), float(self.height_px0))

    def read(self, region: Region, mpp: float) -> Pixels:
        """Read a region at a resolution, antialiased; what lies off the slide is white.

        Output pixel (r, c) covers exactly `mpp` x `mpp` um from the region's corner on, also where the region is not
        a whole number of pixels, so that the grid is the same however a slide is cut into regions: regions on
        multiples of the pixel agree with one big read to the rounding. The nearest finer level is reduced
        (`data/resample.py`); finer than level 0 the image is interpolated. Pixels are laid on white before that.

        Memory is that of the output plus one block of 1024 x 1024 source pixels (about 40 MB), or of the source of one
        output pixel where that is larger, whatever the region; plus the decoded image for formats without tiles.

        Args:
            region: where [level-0 px]; may be fractional and reach beyond the slide.
            mpp: size of an output pixel [um], on both axes.

        Returns:
            `(H, W, 3)` uint8; H = max(1, round(height_px0 * mpp_y / mpp)), W alike.

        Raises:
            ResolutionError: mpp is not positive and finite.
            SlideError: the file is damaged, the slide is closed or the output is larger than memory.
        """
        if not (math.isfinite(mpp) and mpp > 0):
            raise ResolutionError(
                f"{self.name} can be read at a positive mpp [um/px] only, got {mpp}; pass for example mpp=4."
            )
        step_x, step_y = mpp / self.mpp_x, mpp / self.mpp_y  # [level-0 px per output px]
        width, height = max(1, round(region.width_px0 / step_x)), max(1, round(region.height_px0 / step_y))
        what = f"a read of {width} x {height} px of {self.name}"
        require_memory(3 * width * height, what, "read smaller regions or a coarser mpp")
        level = self._level(mpp)
        down_x, down_y = self._downsamples[level]
        out = np.empty((height, width, 3), np.uint8)
        n_rows, n_cols = (max(1, int(_BLOCK_PX / max(1, ratio))) for ratio in (step_y / down_y, step_x / down_x))
        source = n_rows * step_y / down_y, n_cols * step_x / down_x  # [px of the level] of one block
        require_memory(
            int(_BYTES * source[0] * source[1]), f"a pixel of {mpp:g} um of {self.name}", "ask for a finer mpp"
        )
        for row in range(0, height, n_rows):
            for col in range(0, width, n_cols):
                block = out[row : row + n_rows, col : col + n_cols]
                start = ((region.y_px0 + row * step_y) / down_y, (region.x_px0 + col * step_x) / down_x)
                block[...] = self._block(level, start, (step_y / down_y, step_x / down_x), block.shape[:2])
        return out

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        if self._pyramid is not None:
            self._pyramid.close()
            self._pyramid = None

    def __enter__(self) -> Self:
        """Return the slide itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the slide."""
        self.close()

    def _level(self, mpp: float) -> int:
        """Choose the coarsest level that is not coarser than `mpp` on either axis, else level 0."""
        level_mpp = [max(x * self.mpp_x, y * self.mpp_y) for x, y in self._downsamples]
        fine = [level for level, one in enumerate(level_mpp) if one <= mpp * _COARSER]
        return max(fine, key=level_mpp.__getitem__, default=0)

    def _block(
        self, level: int, start: tuple[float, float], step: tuple[float, float], shape: tuple[int, int]
    ) -> Pixels:
        """Resample one block; start and step are (row, column) in pixels of the level."""
        first = [math.floor(at + _SNAP) - MARGIN for at in start]
        last = [math.ceil(at + one * n - _SNAP) + MARGIN for at, one, n in zip(start, step, shape, strict=True)]
        source = self._source(level, first[1], first[0], last[1] - first[1], last[0] - first[0])
        corner = (start[0] - first[0], start[1] - first[1])
        return to_uint8(resample(source, start=corner, step=step, shape=shape))

    def _source(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Read a box of a level that may reach beyond it; a pixel that the slide covers in part is that much white.

        Where the size of a level was rounded down, the slide's last, cut pixel repeats the level's last.
        """
        (level_width, level_height), (down_x, down_y) = self._facts.sizes[level], self._downsamples[level]
        col, cover_x = _cover(x, width, level_width, self.width_px0 / down_x)
        row, cover_y = _cover(y, height, level_height, self.height_px0 / down_y)
        if not (cover_x.any() and cover_y.any()):
            return np.full((height, width, 3), 255, np.uint8)
        left, top, n_cols, n_rows = int(col[0]), int(row[0]), int(col[-1] - col[0]) + 1, int(row[-1] - row[0]) + 1
        inside = self._pixels().read(level, left, top, n_cols, n_rows)
        if cover_x.min() == 1 and cover_y.min() == 1:
            return inside
        pixels = inside[np.ix_(row - top, col - left)]  # (height, width, 3)
        cover = (cover_y[:, None] * cover_x)[..., None].astype(np.float32)
        return to_uint8(255 - cover * (255 - pixels.astype(np.float32)))

    def _pixels(self) -> Pyramid:
        """Return the open pixels."""
        if self._pyramid is None:
            raise SlideError(f"{self.name} must be open to be read, but it is closed; read inside the `with` block.")
        return self._pyramid

    def _hash(self) -> str:
        """Hash the file, or the bytes of an array."""
        if self._path is None:
            pixels = self._pixels().read(0, 0, 0, self.width_px0, self.height_px0)
            return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
        with decoding(self._path.name, (OSError,)), self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _open_pyramid(path: Path) -> Pyramid:
    """Open a file with the first reader that fits it."""
    try:
        slide = OpenSlidePyramid(path)
    except openslide.OpenSlideError as exc:
        return _open_plain(path, exc)
    if slide.vendor == "generic-tiff" and "<OME" in slide.comment:
        slide.close()  # OpenSlide sees neither the levels (sub-IFDs) nor the pixel size of an OME-TIFF
        return TiffPyramid(path)
    return slide


def _open_plain(path: Path, refusal: openslide.OpenSlideError) -> Pyramid:
    """Open what OpenSlide refuses: JPEG, PNG and TIFF, known by their first bytes."""
    if path.suffix.lower() == ".mrxs":  # itself a JPEG, but only of the label
        raise SlideError(
            f"{path.name} needs its folder {path.stem}/ beside it (OpenSlide: {refusal}); copy both."
        ) from refusal
    with decoding(path.name, (OSError,)), path.open("rb") as file:
        head = file.read(8)
    if head.startswith(TIFF_MAGIC):
        return TiffPyramid(path)
    picture = open_picture(path, head)
    if picture is None:
        raise SlideError(
            f"{path.name} must be a slide that OpenSlide opens, or a JPEG, PNG or TIFF, but it is none of them "
            f"(OpenSlide: {refusal}; first bytes {head!r}, {path.stat().st_size} bytes in all); convert it to a "
            "tiled TIFF (vips tiffsave IN OUT.tif --tile --pyramid), or copy it again if it should be one."
        ) from refusal
    return picture


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Level-0 pixels per pixel of a level, (x, y); see `Slide` on whole powers of two."""
    ratio = full[0] / size[0], full[1] / size[1]
    power = 2 ** round(math.log2(ratio[0]))
    if all(abs(side / power - level_side) < 1 for side, level_side in zip(full, size, strict=True)):
        return float(power), float(power)
    return ratio


def _cover(first: int, n: int, size: int, extent: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give the stored index of pixels first..first + n - 1 of a level, and the share of each that is on the slide.

    Args:
        first: first pixel asked for, may be negative.
        n: pixels asked for.
        size: pixels that the level stores.
        extent: side of the slide [level px], may differ from `size` by less than one.
    """
    at = np.arange(first, first + n)
    return np.clip(at, 0, size - 1), np.clip(round(extent, 6) - at, 0, 1) * (at >= 0)
