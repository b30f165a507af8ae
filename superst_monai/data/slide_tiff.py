"""TIFF files that OpenSlide refuses or only half understands (OME-TIFF), read through tifffile."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from superst_monai.data.pixels import Pixels, decoding, on_white, premultiplied_on_white, require_memory, to_8bit
from superst_monai.data.slide_backends import Decoded, Facts
from superst_monai.errors import SlideError

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, IndexError, TypeError, struct.error)
_UM_PER_UNIT = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "Å": 1e-4}
_UM_PER_TAG_UNIT = {2: 25400.0, 3: 10000.0}  # TIFF ResolutionUnit: inch, centimetre; 1 has no unit
_COLOURS = ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "SEPARATED", "YCBCR")
_PAGE_AXES = "QI"  # pages without a stated meaning: the first is the image, as in every plain reader
_DECODE_BYTES = 6  # of memory at the peak per byte of a decoded plane: pages, conversion, result

Box = Callable[[int, int, int, int], Pixels]


class TiffPyramid:
    """The largest image of a TIFF with its reduced levels.

    Tiles are decoded as they are needed; a level in strips is decoded whole at its first use and kept. Any unsigned
    integer colour layout of 1..16 bits becomes 8-bit RGB on white: gray, palette, RGB, CMYK, YCbCr, with or without
    alpha, interleaved or planar. Of pages without a stated meaning the first is taken; a stack of z-planes, of times
    or of other than three channels is refused. The Orientation tag is not applied.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            SlideError: not a TIFF, cut off, a stack, or pixels of an unknown range.
        """
        with decoding(path.name, _ERRORS):
            self._file = tifffile.TiffFile(path)
        try:
            with decoding(path.name, _ERRORS):
                series = max(self._file.series, key=lambda one: int(np.prod(_size(one))))
                pages = [level.keyframe for level in series.levels]
                _check(self._file, series, pages)
                self._boxes = [self._box(series, index) for index in range(len(pages))]
                stated = _ome_mpp(self._file.ome_metadata, _size(series))
                self.facts = Facts(
                    path.name,
                    "tifffile",
                    tuple(_size(level) for level in series.levels),
                    mpp=stated or _tag_mpp(pages[0]),
                    mpp_from_tags=stated is None,
                )
        except SlideError:
            self._file.close()
            raise

    def _box(self, series: tifffile.TiffPageSeries, index: int) -> Box:
        """Return the function that reads boxes of one level."""
        level, name = series.levels[index], self._file.filename
        page = level.keyframe
        array = zarr.open_array(series.aszarr(level=index), mode="r")

        def read(x: int, y: int, width: int, height: int) -> Pixels:
            where = {"Y": slice(y, y + height), "X": slice(x, x + width), "S": slice(None), "C": slice(None)}
            with decoding(name, _ERRORS):
                return _to_rgb(np.asarray(array[tuple(where.get(axis, 0) for axis in level.axes)]), level.axes, page)

        if page.is_tiled:
            return read
        width, height = _size(level)
        n_bytes = width * height * page.samplesperpixel * level.dtype.itemsize * _DECODE_BYTES
        advice = "convert it to a tiled pyramid (vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg)"
        require_memory(n_bytes, f"{name} is {width} x {height} px in strips; decoding it whole", advice)
        return Decoded(lambda: read(0, 0, width, height)).box

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Read a box of a level; see `slide_backends.Pyramid.read`."""
        return self._boxes[level](x, y, width, height)

    def close(self) -> None:
        """Release the file and the decoded levels."""
        self._boxes.clear()
        self._file.close()


def _size(series: tifffile.TiffPageSeries) -> tuple[int, int]:
    """(width, height) of a series or level; (0, 0) if it is no image."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return (sizes["X"], sizes["Y"]) if {"X", "Y"} <= sizes.keys() else (0, 0)


def _check(file: tifffile.TiffFile, series: tifffile.TiffPageSeries, pages: list[Any]) -> None:
    """Refuse a file that is cut off, no plane image, or of unknown pixel range; all faults at once."""
    page, faults = pages[0], []
    sizes = dict(zip(series.axes, series.shape, strict=True))
    extra = {axis: n for axis, n in sizes.items() if axis not in "YXS" + _PAGE_AXES and n > 1}
    if extra and extra != {"C": 3}:
        faults.append(f"one plane of gray or RGB is needed, but it is a stack of {extra} (axes {series.axes})")
    if page.dtype is None or page.dtype.kind not in "bu" or page.bitspersample > 16:
        faults.append(f"pixels must be unsigned integers of 1..16 bits, but they are {page.dtype}")
    if page.photometric.name not in _COLOURS:
        faults.append(f"colours must be one of {', '.join(_COLOURS)}, but they are {page.photometric.name}")
    end = max(int(np.add(one.dataoffsets, one.databytecounts).max(initial=0)) for one in pages)
    directories = (_next_directory(file), *(page.subifds or ()))
    end, size = max(end, *(offset + 2 for offset in directories)), file.filehandle.size
    if end > size:
        faults.append(f"its directories reach to byte {end}, but the file ends at {size}: it is cut off")
    if faults:
        raise SlideError(
            f"{file.filename} cannot be read: {'; '.join(faults)}. Re-export it as 8-bit RGB, or copy it again."
        )


def _next_directory(file: tifffile.TiffFile) -> int:
    """Where the directory after the last readable one should be [byte]; 0 in a complete file.

    tifffile drops a directory that it cannot reach, and with it a level of the pyramid, without an error.
    """
    handle, layout = file.filehandle, file.tiff
    handle.seek(file.pages[len(file.pages) - 1].offset)
    n_tags = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))[0]
    handle.seek(n_tags * layout.tagsize, 1)
    return int(struct.unpack(layout.offsetformat, handle.read(layout.offsetsize))[0])


def _to_rgb(values: NDArray[Any], axes: str, page: Any) -> Pixels:
    """Convert stored samples, in the order of `axes`, to `(H, W, 3)` on white."""
    order = "".join(axis for axis in axes if axis in "YXSC")
    for channel in set(order) & set("SC"):
        values = np.moveaxis(values, order.index(channel), -1)
    if values.ndim == 2:
        values = values[..., None]  # (H, W, samples)
    colour, bits = page.photometric.name, page.bitspersample
    if colour == "PALETTE":
        table = (page.colormap >> 8).astype(np.uint8)  # writers store v * 256 or v * 257
        return np.ascontiguousarray(table[:, values[..., 0]].transpose(1, 2, 0))
    values = to_8bit(values, bits)
    if colour in ("SEPARATED", "YCBCR"):
        decoded = colour == "YCBCR" and page.compression.name == "JPEG"  # imagecodecs has made RGB of it
        mode = {"SEPARATED": "CMYK", "YCBCR": "YCbCr"}[colour]
        stored = np.ascontiguousarray(values[..., : Image.getmodebands(mode)])
        if decoded:
            return stored
        height, width = stored.shape[:2]
        return np.array(Image.frombytes(mode, (width, height), stored.tobytes()).convert("RGB"))
    n = 3 if values.shape[-1] >= 3 else 1  # colour samples; the rest are extra
    rgb = np.repeat(values[..., :1], 3, axis=2) if n == 1 else values[..., :3]
    rgb = 255 - rgb if colour == "MINISWHITE" else rgb
    alpha = [kind.name for kind in page.extrasamples[:1]]
    if values.shape[-1] > n and alpha == ["UNASSALPHA"]:
        return on_white(rgb, values[..., n])
    if values.shape[-1] > n and alpha == ["ASSOCALPHA"]:
        return premultiplied_on_white(rgb, values[..., n])
    return np.ascontiguousarray(rgb)


def _ome_mpp(xml: str | None, size: tuple[int, int]) -> tuple[float, float] | None:
    """Physical size of a pixel [um] that OME-XML states for the image of this size, None where it does not."""
    if xml is None:
        return None
    for pixels in ElementTree.fromstring(xml).iterfind(".//{*}Pixels"):
        if (pixels.get("SizeX"), pixels.get("SizeY")) == (str(size[0]), str(size[1])):
            units = [_UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]
            sides = [pixels.get(f"PhysicalSize{axis}") for axis in "XY"]
            if all(units) and all(sides):
                x, y = (float(str(side)) * float(unit or 0) for side, unit in zip(sides, units, strict=True))
                return x, y
    return None


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    """Physical size of a pixel [um] from the tags XResolution, YResolution and ResolutionUnit."""
    values = [page.tags.valueof(name) for name in ("XResolution", "YResolution", "ResolutionUnit")]
    um = _UM_PER_TAG_UNIT.get(2 if values[2] is None else int(values[2]))  # TIFF 6.0: inch where the tag is absent
    if um is None or not all(isinstance(value, tuple) and all(value) for value in values[:2]):
        return None
    (x, x_unit), (y, y_unit) = values[:2]
    return um * x_unit / x, um * y_unit / y
