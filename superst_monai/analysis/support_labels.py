"""Supports from a label image: the spots of a section, or cells that another program drew."""

from __future__ import annotations

import itertools
import math
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from superst_monai.analysis.label_files import Raster
from superst_monai.analysis.polygon_coverage import Shares
from superst_monai.analysis.supports import Indices, SharedPixels
from superst_monai.data.section import Section
from superst_monai.errors import AlignmentError, ResolutionError, ShapeError
from superst_monai.inference.maps import Maps
from superst_monai.inference.sample_tiles import Place

Floats = NDArray[np.float64]
_Summary: TypeAlias = tuple[Indices, Floats, Indices]
_BOX_PX = 128  # pixels of the map along a side that are looked at at once


class Labels(SharedPixels):
    """Objects of a label image, 0 where there is none; each other number is an object.

    A pixel of the maps is sampled at n x n places, n = mpp of the maps over that of the labels, rounded up, and is
    shared out by the labels found. Where the label image has whole pixels of the maps (or the maps whole label pixels)
    these are the exact areas.

    Args:
        maps: of the same slide.
        image: label image from the slide's upper left corner `(h, w)`, integers.
        mpp: its resolution [um/px].
        kind: what the objects are, in the plural.

    Raises:
        ShapeError: not an image of integers, negative numbers, or no object.
        AlignmentError: the image is not as large as the slide.
    """

    def __init__(self, maps: Maps, image: Raster, mpp: float, *, kind: str = "cells") -> None:
        """Look at every pixel once: which objects there are, how large, and where."""
        _check_extent(maps, image, mpp)
        self.kind = kind
        self._maps, self._image, self._mpp = maps, image, mpp
        self._times = max(1, math.ceil(round(maps.mpp / mpp, 6)))
        self.ids, sums, self._ends = self._survey()
        if len(self.ids) == 0:
            raise ShapeError("the label image must have objects, but all its pixels are 0; check the file.")
        self._area_px, x, y = sums.T
        self._centre_um = np.stack([x, y]) / self._area_px * maps.mpp

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.ids)

    def table(self) -> pd.DataFrame:
        """S rows named by label: x_um, y_um (centre of gravity), area_um2."""
        x_um, y_um = self._centre_um
        columns = {"x_um": x_um, "y_um": y_um, "area_um2": self._area_px * self._maps.mpp**2}
        return pd.DataFrame(columns, index=pd.Index(self.ids.astype(str), name="label"))

    def ends(self) -> Indices:
        """Last row and column of each object, plus one, `(S, 2)` [px]."""
        return self._ends

    def shares(self, place: Place) -> Shares:
        """What the objects cover of a box of pixels."""
        label, pixel, count = self._counts(place)
        return Shares(np.searchsorted(self.ids, label), pixel, (count / self._times**2).astype(np.float32))

    def _counts(self, place: Place) -> tuple[Indices, Indices, Indices]:
        """Label, pixel of the box, and number of places found there, for each pair of the former that occurs."""
        rows, cols = place
        parts = []
        for top, left in itertools.product(*(range(part.start, part.stop, _BOX_PX) for part in place)):
            box = slice(top, min(top + _BOX_PX, rows.stop)), slice(left, min(left + _BOX_PX, cols.stop))
            label, pixel, count = self._counts_in_box(box)
            row, col = np.divmod(pixel, box[1].stop - left)
            parts.append((label, (row + top - rows.start) * (cols.stop - cols.start) + col + left - cols.start, count))
        label, pixel, count = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return label, pixel, count

    def _counts_in_box(self, box: Place) -> tuple[Indices, Indices, Indices]:
        """`_counts` of a small box."""
        times = self._times
        height, width = (part.stop - part.start for part in box)
        fine = self._sample(box).reshape(height, times, width, times).swapaxes(1, 2)  # (h, w, n, n)
        label = np.sort(fine.reshape(height * width, -1), axis=1)
        first = np.ones(label.shape, np.bool_)  # of a run of one label in one pixel
        first[:, 1:] = label[:, 1:] != label[:, :-1]
        at = np.flatnonzero(first)
        count, found = np.diff(at, append=label.size), label.ravel()[at].astype(np.int64)
        some = found > 0
        return found[some], at[some] // times**2, count[some]

    def _sample(self, box: Place) -> NDArray[Any]:
        """Labels at the places at which the pixels of a box are sampled, `(h n, w n)`."""
        wanted = []
        for part, side in zip(box, self._image.shape, strict=True):
            fine = np.arange(part.start * self._times, part.stop * self._times)
            at = np.floor((fine + 0.5) / self._times * self._maps.mpp / self._mpp).astype(np.int64)
            wanted.append(at.clip(max=side - 1))
        (top, left), (bottom, right) = ([int(at[i]) for at in wanted] for i in (0, -1))
        labels = np.asarray(self._image[top : bottom + 1, left : right + 1])
        if labels.min() < 0:
            raise ShapeError(f"labels must be 0 (none) or positive, got {labels.min()}; export the label image again.")
        sampled: NDArray[Any] = labels[np.ix_(wanted[0] - top, wanted[1] - left)]
        return sampled

    def _survey(self) -> _Summary:
        """All labels, their areas and moments, and their ends; see `_summary`."""
        height, width = self._maps.shape
        found = []
        for top in range(0, height, _BOX_PX):
            label, pixel, count = self._counts((slice(top, min(top + _BOX_PX, height)), slice(0, width)))
            row, col = np.divmod(pixel, width)
            found.append(_summary(label, count / self._times**2, row + top, col))
        return _merge(found)


class Spots(SharedPixels):
    """Spots of a section, each of whole pixels: those that training counts to it (`transforms.labels.draw_spots`).

    Args:
        maps: of the same slide.
        section: with spots.

    Raises:
        RunError: the section has no spots.
        AlignmentError: section and maps differ in extent.
    """

    kind = "spots"

    def __init__(self, maps: Maps, section: Section) -> None:
        """Draw the spots on the maps' pixels."""
        self._section, self._mpp = section, maps.mpp
        self._label = maps.spot_label(section)
        lost = len(section.spots) - len(np.unique(self._label[self._label > 0]))
        if lost:
            self.notes = (f"{lost} of {section.n_spots} spots have no pixel of their own; their counts are 0.",)

    def __len__(self) -> int:
        """Number of spots."""
        return self._section.n_spots

    def table(self) -> pd.DataFrame:
        """The section's spots in their order, with area_um2 of their pixels."""
        n_px = np.bincount(self._label.ravel(), minlength=len(self) + 1)[1:]
        table: pd.DataFrame = self._section.spots.assign(area_um2=n_px * self._mpp**2)
        return table

    def ends(self) -> Indices:
        """Last row and column of each spot, plus one, `(S, 2)` [px]."""
        spots = self._section.spots
        last = (spots[["y_um", "x_um"]].to_numpy() + spots[["radius_um"]].to_numpy()) / self._mpp
        reached: Indices = np.floor(last).astype(np.int64) + 1
        return reached

    def shares(self, place: Place) -> Shares:
        """What the spots cover of a box of pixels."""
        label = self._label[place].ravel()
        pixel = np.flatnonzero(label)
        return Shares(label[pixel] - 1, pixel, np.ones(len(pixel), np.float32))

    def outlines_um(self) -> NDArray[Any]:
        """Circles, of 64 corners, or squares, `(S,)` [um]."""
        x, y, radius = self._section.spots[["x_um", "y_um", "radius_um"]].to_numpy(np.float64).T
        if self._section.shape == "square":
            return np.asarray(shapely.box(x - radius, y - radius, x + radius, y + radius))
        return np.asarray(shapely.buffer(shapely.points(x, y), radius, quad_segs=16))


def _check_extent(maps: Maps, image: Raster, mpp: float) -> None:
    """Refuse a label image that does not cover the slide."""
    height, width = image.shape
    if not (math.isfinite(mpp) and mpp > 0):
        raise ResolutionError(f"the resolution of a label image must be a positive number [um/px], got {mpp:g}.")
    sides = [(n * mpp, m * maps.mpp) for n, m in zip(image.shape, maps.shape, strict=True)]
    if any(abs(one - other) > mpp + maps.mpp for one, other in sides):
        (tall, high), (long, wide) = sides
        raise AlignmentError(
            f"the label image must cover the slide, {wide:.0f} x {high:.0f} um, but its {width} x {height} px of "
            f"{mpp:g} um measure {long:.0f} x {tall:.0f} um; export labels of the whole slide."
        )


def _summary(label: Indices, share: Floats, row: Indices, col: Indices) -> _Summary:
    """Area and moments of each label, and its last row and column plus one."""
    ids, group = np.unique(label, return_inverse=True)
    sums = [np.bincount(group, share * factor, len(ids)) for factor in (1.0, col + 0.5, row + 0.5)]
    ends = np.zeros((len(ids), 2), np.int64)
    np.maximum.at(ends, group, np.stack([row, col], axis=1) + 1)
    return ids, np.stack(sums, axis=1), ends


def _merge(parts: list[_Summary]) -> _Summary:
    """Summaries of several boxes as one."""
    label, sums, ends = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    ids, group = np.unique(label, return_inverse=True)
    total, last = np.zeros((len(ids), sums.shape[1])), np.zeros((len(ids), 2), np.int64)
    np.add.at(total, group, sums)
    np.maximum.at(last, group, ends)
    return ids, total, last
