"""OME-TIFF of chosen genes: a tiled pyramid with physical pixel size, one channel a gene and layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from superst_monai.analysis.exports.pyramid import Picture, open_levels
from superst_monai.analysis.supports import Floats

_TILE = 256
_UM_PER_CM = 1e4
_CLASSIC_BYTES = 2**31  # files that may grow beyond are BigTIFF


def write_ome_tiff(path: Path, picture: Picture, pyramid: Path) -> None:
    """Write a pyramid as OME-TIFF: float32, tiles of 256, deflate; memory is that of a few tiles.

    Args:
        path: file to write.
        picture: what the pyramid shows.
        pyramid: folder of `write_pyramid`.
    """
    levels = open_levels(pyramid)
    size, names = picture.grid.size_um, picture.channels
    about = "; ".join(f"{layer}: {unit}" for layer, unit in picture.facts["units"].items())
    described = {
        "axes": "CYX",
        "Name": str(picture.maps.record["source"]),
        "Description": f"{picture.grid.kind} of {size:g} um; {about}",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": names},
    }
    n_bytes = sum(level.nbytes for level in levels)
    with tifffile.TiffWriter(path, bigtiff=n_bytes > _CLASSIC_BYTES, ome=True) as tif:
        for k, level in enumerate(levels):
            more: dict[str, Any] = {"subfiletype": 1, "metadata": None} if k else {"metadata": described}
            tif.write(
                _tiles(level),
                shape=level.shape,
                dtype=np.float32,
                tile=(_TILE, _TILE),
                subifds=None if k else len(levels) - 1,
                photometric="minisblack",
                compression="zlib",
                resolution=(_UM_PER_CM / (size * 2**k), _UM_PER_CM / (size * 2**k)),
                resolutionunit="CENTIMETER",
                **more,
            )


def _tiles(level: zarr.Array[Any]) -> Iterator[Floats]:
    """Yield the tiles of each channel, row by row."""
    n_channels, height, width = level.shape
    for channel, row, col in itertools.product(range(n_channels), range(0, height, _TILE), range(0, width, _TILE)):
        yield np.asarray(level[channel, row : row + _TILE, col : col + _TILE])
