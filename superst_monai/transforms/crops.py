"""Cut a square window out of a section, at a random tissue pixel or at a given centre."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms.transform import RandomizableTransform, Transform
from torch import Tensor

from superst_monai.errors import ShapeError
from superst_monai.transforms.sources import PatchKey, PatchSource, check_sources, renumber
from superst_monai.types import Key

WHITE = 255  # colour of the glass beyond the edge of a slide, as the slide reader composes it


def cut_window(source: PatchSource, *, row: int, col: int, side: int) -> tuple[Tensor, Tensor]:
    """Cut the square of `side` pixels whose top left pixel is (row - side // 2, col - side // 2).

    Args:
        source: the section.
        row: centre of the window, section pixels; like `col` it may lie off the section.
        col: centre of the window, section pixels.
        side: of the window [px].
    Returns:
        Image `(3, side, side)` uint8 and label `(side, side)` int32, both copies; off the section the image is white
        and the label that of the support outside the tissue.
    """
    (inner_rows, rows), (inner_cols, cols) = (
        _overlap(centre - side // 2, side, length)
        for centre, length in zip((row, col), source.label.shape, strict=True)
    )
    image = torch.full((3, side, side), WHITE, dtype=torch.uint8)
    label = torch.full((side, side), source.outside, dtype=source.label.dtype)
    image[:, inner_rows, inner_cols] = source.image[:, rows, cols]
    label[inner_rows, inner_cols] = source.label[rows, cols]
    return image, label


def _overlap(start: int, side: int, length: int) -> tuple[slice, slice]:
    """Return where the window start ... start + side meets 0 ... length: within the window, and within the section."""
    first, last = (min(max(edge, 0), length) for edge in (start, start + side))
    return slice(first - start, last - start), slice(first, last)


def _patch(source: PatchSource, *, section: int, row: int, col: int, side: int) -> dict[Hashable, Any]:
    """Return the sample of one window, with labels numbered within it so that float32 holds them exactly."""
    image, label = cut_window(source, row=row, col=col, side=side)
    local, ids = renumber(label)
    return {
        Key.IMAGE: image.float().div_(WHITE),
        Key.LABEL: local[None].float(),
        PatchKey.SPOT_IDS: ids,
        Key.SECTION: section,
    }


class RandTissuePatchd(RandomizableTransform):
    """Cut a window round a pixel drawn uniformly from the tissue of the sample's section.

    The sample `{Key.SECTION: int}` becomes Key.IMAGE `(3, side, side)` float32 in [0, 1], Key.LABEL
    `(1, side, side)` float32 with ids 1 ... n of this window, PatchKey.SPOT_IDS `(n,)` int64 with the section's own
    ids of these, and Key.SECTION.

    Args:
        sources: the sections.
        side: of the window [px].
    Raises:
        ShapeError: a section has no tissue, or the sections differ in their number of genes.
    """

    def __init__(self, sources: Sequence[PatchSource], *, side: int) -> None:
        """Check and keep the sections."""
        super().__init__(prob=1.0)
        self.sources = check_sources(sources)
        self.side = side
        self._index = 0
        bare = [index for index, source in enumerate(self.sources) if source.tissue_area_px == 0]
        if bare:
            raise ShapeError(
                f"every section to train on needs tissue pixels, got none in section(s) {bare}; "
                "check the tissue mask or leave the section out."
            )

    def randomize(self, data: PatchSource) -> None:
        """Draw one of the tissue pixels of `data`."""
        self._index = int(data.tissue_index[int(self.R.randint(data.tissue_area_px))])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample of a random window of section `data[Key.SECTION]`."""
        section = int(data[Key.SECTION])
        source = self.sources[section]
        self.randomize(source)
        row, col = divmod(self._index, source.label.shape[1])
        return _patch(source, section=section, row=row, col=col, side=self.side)


class CenterPatchd(Transform):
    """Cut the window round a given centre; the same output as `RandTissuePatchd`, without chance.

    The sample is `{Key.SECTION: int, PatchKey.ROW: int, PatchKey.COL: int}`, the centre in section pixels.

    Args:
        sources: the sections.
        side: of the window [px].
    Raises:
        ShapeError: the sections differ in their number of genes.
    """

    def __init__(self, sources: Sequence[PatchSource], *, side: int) -> None:
        """Check and keep the sections."""
        self.sources = check_sources(sources)
        self.side = side

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample of the window round (`data[PatchKey.ROW]`, `data[PatchKey.COL]`)."""
        section, row, col = (int(data[key]) for key in (Key.SECTION, PatchKey.ROW, PatchKey.COL))
        return _patch(self.sources[section], section=section, row=row, col=col, side=self.side)
