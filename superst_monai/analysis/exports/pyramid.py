"""OME-Zarr of chosen genes: a pyramid of images, written square by square, that napari, QuPath and Fiji open."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import zarr

from superst_monai.analysis.support_counts import LAYERS, Show, check_layers, count_layers, law_in_parts
from superst_monai.analysis.support_grid import CHUNK, Block, Grid
from superst_monai.analysis.supports import Floats
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps

_MOST_CHANNELS = 1000
_VERSION = "0.4"  # of NGFF, which all the programs read


class Picture(NamedTuple):
    """What an image shows.

    Attributes:
        maps: posterior maps.
        grid: its pixels, which are pixels or bins of the maps.
        genes: names.
        layers: names of `LAYERS`; a channel for each gene and layer.
    """

    maps: Maps
    grid: Grid
    genes: Sequence[str]
    layers: Sequence[str]

    @property
    def channels(self) -> list[str]:
        """Names of the channels: the gene for its mean, else gene and layer."""
        return [gene if layer == "mean" else f"{gene} {layer}" for gene in self.genes for layer in self.layers]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (len(self.channels), *self.grid.shape)

    @property
    def facts(self) -> dict[str, Any]:
        """What must be known of the numbers."""
        return {
            "kind": self.grid.kind,
            "size_um": self.grid.size_um,
            "source": self.maps.record["source"],
            "mpp": self.maps.mpp,
            "samples": self.maps.n_samples,
            "units": {layer: LAYERS[layer] for layer in self.layers},
        }


def check_picture(picture: Picture) -> None:
    """Refuse genes and layers that there are not, and more channels than a program can show.

    Raises:
        RunError: what is wrong.
    """
    check_layers(picture.layers)
    maps, n_channels = picture.maps, len(picture.channels)
    maps.law(np.zeros((maps.n_samples, 0, maps.n_metagenes), np.float32), picture.genes)
    if not 0 < n_channels <= _MOST_CHANNELS:
        raise RunError(
            f"an image holds 1 ... {_MOST_CHANNELS} channels, got {len(picture.genes)} genes x {len(picture.layers)} "
            "layers; choose genes (--genes A,B)."
        )


def write_pyramid(path: Path, picture: Picture, *, show: Show | None = None) -> None:
    """Write an OME-Zarr image (NGFF 0.4, zarr 2), float32, channels x height x width.

    Level 0 has the numbers; each further level is the average of 2 x 2 pixels of the one before, so that its unit is
    that of level 0. What was not predicted is zero. Memory is that of a square of `CHUNK` pixels in all channels.

    Args:
        path: folder to make.
        picture: what to write.
        show: called with the share done and the seconds spent.
    """
    root = zarr.open_group(path, mode="w", zarr_format=2)
    level, highest = _create(root, 0, picture.shape), np.zeros(picture.shape[0], np.float32)
    for (row, col), values in _squares(picture, show):
        level[:, row : row + values.shape[1], col : col + values.shape[2]] = values
        highest = np.maximum(highest, values.max(axis=(1, 2)))
    levels = [level]
    while max(levels[-1].shape[1:]) > CHUNK:
        levels.append(_halve(root, len(levels), levels[-1]))
    root.attrs.update(_metadata(picture, len(levels), highest))


def open_levels(path: Path) -> list[zarr.Array[Any]]:
    """Levels of a pyramid `(C, h, w)`, the largest first."""
    root = zarr.open_group(path, mode="r", zarr_format=2)
    return [cast("zarr.Array[Any]", root[str(i)]) for i in range(len(list(root.array_keys())))]


def _create(root: zarr.Group, number: int, shape: tuple[int, ...]) -> zarr.Array[Any]:
    """An empty level; squares without a value take no space."""
    return root.create_array(
        str(number),
        shape=shape,
        chunks=(1, CHUNK, CHUNK),
        dtype="float32",
        chunk_key_encoding={"name": "v2", "separator": "/"},
        fill_value=0.0,
    )


def _squares(picture: Picture, show: Show | None) -> Iterator[tuple[tuple[int, int], Floats]]:
    """Yield corner and channels `(C, h, w)` of each square of `CHUNK` pixels that holds a prediction."""
    started, corner = time.monotonic(), (-1, -1)
    values = np.zeros(0, np.float32)
    for block in picture.grid.blocks():
        row, col = (part.start // CHUNK * CHUNK for part in (block.rows, block.cols))
        if corner != (row, col):
            if values.size:
                yield corner, values
            height, width = (min(CHUNK, side - at) for side, at in zip(picture.shape[1:], (row, col), strict=True))
            corner, values = (row, col), np.zeros((picture.shape[0], height, width), np.float32)
        place = (
            slice(block.rows.start - row, block.rows.stop - row),
            slice(block.cols.start - col, block.cols.stop - col),
        )
        values[(slice(None), *place)] = _channels(picture, block)
        if show is not None:
            show(block.done, time.monotonic() - started)
    if values.size:
        yield corner, values


def _channels(picture: Picture, block: Block) -> Floats:
    """Channels of a block `(C, h, w)`."""
    some = block.covered_px > 0
    sizes = block.sizes[:, :, some].transpose(0, 2, 1)  # (N, s, K)
    found = np.zeros((sizes.shape[1], len(picture.genes), len(picture.layers)), np.float32)
    for rows, cols, sums in law_in_parts(picture.maps, sizes, picture.genes):
        layers = count_layers(sums, picture.layers)
        found[rows, cols] = np.stack([layers[layer] for layer in picture.layers], axis=-1)
    values = np.zeros((picture.shape[0], *some.shape), np.float32)
    values[:, some] = found.reshape(len(found), -1).T
    return values


def _halve(root: zarr.Group, number: int, finer: zarr.Array[Any]) -> zarr.Array[Any]:
    """Write the level after `finer`."""
    n_channels, *sides = finer.shape
    level = _create(root, number, (n_channels, *(-(-side // 2) for side in sides)))
    for channel in range(n_channels):
        for row in range(0, level.shape[1], CHUNK):
            for col in range(0, level.shape[2], CHUNK):
                values = np.asarray(finer[channel, 2 * row : 2 * (row + CHUNK), 2 * col : 2 * (col + CHUNK)])
                if values.any():
                    level[channel, row : row + CHUNK, col : col + CHUNK] = halve(values)
    return level


def halve(values: Floats) -> Floats:
    """Average of 2 x 2 pixels `(h, w)`; at an odd border of those that there are."""
    starts, counts = zip(
        *((at := np.arange(0, side, 2), np.minimum(side - at, 2)) for side in values.shape), strict=True
    )
    summed = functools.reduce(lambda image, axis: np.add.reduceat(image, starts[axis], axis), range(2), values)
    return np.asarray(summed / np.multiply.outer(*counts), np.float32)


def _metadata(picture: Picture, n_levels: int, highest: Floats) -> dict[str, Any]:
    """Attributes by the OME-NGFF specification 0.4, with the display range that viewers start from."""
    size = picture.grid.size_um
    datasets = [
        {
            "path": str(k),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, size * 2**k, size * 2**k]},
                {"type": "translation", "translation": [0.0, size * (2**k - 1) / 2, size * (2**k - 1) / 2]},
            ],
        }
        for k in range(n_levels)
    ]
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    axes = [{"name": "c", "type": "channel"}, *space]
    colours = ["FF00FF", "00FF00", "FFFF00", "00FFFF", "FF8000", "0080FF"]
    channels = [
        {
            "label": name,
            "color": colours[i % len(colours)],
            "active": i < 1,
            "window": {"min": 0.0, "max": float(top), "start": 0.0, "end": float(top)},
        }
        for i, (name, top) in enumerate(zip(picture.channels, highest, strict=True))
    ]
    name = str(picture.maps.record["source"])
    return {
        "multiscales": [{"version": _VERSION, "name": name, "axes": axes, "datasets": datasets, "type": "mean"}],
        "omero": {"version": _VERSION, "name": name, "channels": channels},
        "superst_monai": picture.facts,
    }
