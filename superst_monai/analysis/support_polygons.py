"""Supports from outlines: cells, which share no pixel, and drawn regions, which may."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from superst_monai.analysis.geojson_files import Features
from superst_monai.analysis.polygon_coverage import Shares, polygon_shares
from superst_monai.analysis.supports import Indices, SharedPixels
from superst_monai.errors import AlignmentError
from superst_monai.inference.maps import Maps
from superst_monai.inference.sample_tiles import Place

Outlines = NDArray[Any]
_POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_TRACE = 1e-6  # share of an outline that may be lost to rounding


class Polygons(SharedPixels):
    """Outlines on a slide; a pixel belongs to one by the share of its area that lies within.

    Features without an area are left out, outlines that cross themselves are repaired (even-odd rule), what lies beyond
    the slide does not count; `notes` says all of it.

    Args:
        maps: of the same slide.
        features: as `read_features` gives them.
        kind: what they are, in the plural.
        apart: give what two outlines share to the first of them in the file; otherwise it counts for both.

    Raises:
        AlignmentError: no outline lies on the slide; the message says what became of all of them.
    """

    def __init__(self, maps: Maps, features: Features, *, kind: str, apart: bool) -> None:
        """Check, repair and place the outlines."""
        self.kind, self._mpp = kind, maps.mpp
        names = _names(features.table, kind)
        kept = _with_area(_Kept(features.outlines_px0, np.arange(len(names)), []), names)
        px = shapely.transform(kept.outlines, lambda xy: np.stack(maps.from_px0(*xy.T)[::-1], axis=1) + 0.5)
        height, width = maps.shape
        kept = _on_slide(kept._replace(outlines=px), shapely.box(0, 0, width, height), names)
        if len(kept.rows) == 0:
            raise AlignmentError(_nothing_left(features, kind, kept.notes, maps))
        if apart:
            kept = _apart(kept, names)
        self.notes = tuple(f"{kind}: {note}" for note in kept.notes)
        self._px = kept.outlines
        self._on_slide = shapely.intersection(self._px, shapely.box(0, 0, width, height))
        self._table = features.table.iloc[kept.rows].set_axis(names[kept.rows], axis=0)
        self._tree = shapely.STRtree(self._px)

    def __len__(self) -> int:
        """Number of outlines."""
        return len(self._px)

    def table(self) -> pd.DataFrame:
        """S rows in the order of the file: id, name, classification, object_type, x_um, y_um, area_um2.

        They are named by `name` where all names differ, else by kind and place in the file.
        """
        centre = shapely.centroid(self._on_slide)
        place = {"x_um": shapely.get_x(centre) * self._mpp, "y_um": shapely.get_y(centre) * self._mpp}
        return self._table.assign(**place, area_um2=shapely.area(self._on_slide) * self._mpp**2)

    def ends(self) -> Indices:
        """Last row and column of each, plus one, `(S, 2)` [px]."""
        reached: Indices = np.ceil(shapely.bounds(self._px)[:, [3, 2]]).astype(np.int64)
        return reached

    def shares(self, place: Place) -> Shares:
        """What the outlines cover of a box of pixels."""
        rows, cols = place
        near = np.sort(self._tree.query(shapely.box(cols.start, rows.start, cols.stop, rows.stop)))
        local = shapely.transform(self._px[near], lambda xy: xy - (cols.start, rows.start))
        found = polygon_shares(local, (rows.stop - rows.start, cols.stop - cols.start))
        return found._replace(support=near[found.support])

    def outlines_um(self) -> Outlines:
        """The outlines as they were used `(S,)` [um]."""
        return np.asarray(shapely.transform(self._px, lambda xy: xy * self._mpp))


class _Kept(NamedTuple):
    """Outlines that are still there, their rows in the file, and what was said about the others."""

    outlines: Outlines
    rows: Indices
    notes: list[str]

    def without(self, bad: NDArray[np.bool_], fault: str, names: NDArray[Any]) -> _Kept:
        """Leave some out; `fault` is what they do, in the plural."""
        return _Kept(self.outlines[~bad], self.rows[~bad], self.said(bad, f"{fault} and are left out", names).notes)

    def said(self, which: NDArray[np.bool_], what: str, names: NDArray[Any]) -> _Kept:
        """Note how many do something, and the first of them."""
        if not which.any():
            return self
        first = names[self.rows[np.argmax(which)]]
        note = f"{int(which.sum())} of {len(names)} {what} (first: {first})"
        return self._replace(notes=[*self.notes, note])


def _names(table: pd.DataFrame, kind: str) -> NDArray[Any]:
    """Unique names of the features."""
    names = table["name"]
    if names.is_unique and (names != "").all():
        return names.to_numpy(dtype=object)
    return np.array([f"{kind.removesuffix('s')}_{i + 1}" for i in range(len(table))], dtype=object)


def _with_area(kept: _Kept, names: NDArray[Any]) -> _Kept:
    """Those that have an area, repaired where they cross themselves."""
    broken = ~np.isfinite(shapely.bounds(kept.outlines)).all(axis=1)
    kept = kept.without(broken, "are empty or broken", names)
    outlines, crossed = kept.outlines.copy(), ~shapely.is_valid(kept.outlines)
    outlines[crossed] = shapely.make_valid(outlines[crossed])
    mixed = ~np.isin(shapely.get_type_id(outlines), _POLYGONAL)
    outlines[mixed] = shapely.buffer(outlines[mixed], 0)  # drops points and lines
    kept = kept._replace(outlines=outlines).said(crossed, "cross themselves and were repaired", names)
    return kept.without(shapely.area(outlines) <= 0, "are points or lines", names)


def _on_slide(kept: _Kept, slide: Any, names: NDArray[Any]) -> _Kept:
    """Those that lie on the slide, at least in part."""
    within, whole = shapely.area(shapely.intersection(kept.outlines, slide)), shapely.area(kept.outlines)
    kept = kept.said((within > 0) & (within < (1 - _TRACE) * whole), "reach beyond the slide and are cut there", names)
    return kept.without(within <= 0, "lie off the slide", names)


def _apart(kept: _Kept, names: NDArray[Any]) -> _Kept:
    """Outlines less what they share with earlier ones."""
    later, earlier = shapely.STRtree(kept.outlines).query(kept.outlines, predicate="intersects")
    pairs = np.stack([later, earlier])[:, earlier < later]
    later, earlier = pairs[:, np.lexsort(pairs[::-1])]
    outlines = kept.outlines.copy()
    turn = np.arange(len(later)) - np.searchsorted(later, later)  # 0 for the first that an outline gives way to
    for now in range(int(turn.max(initial=-1)) + 1):
        these = turn == now
        cut = shapely.difference(outlines[later[these]], kept.outlines[earlier[these]])
        outlines[later[these]] = cut
    left = shapely.area(outlines) / shapely.area(kept.outlines)
    kept = kept._replace(outlines=outlines)
    kept = kept.said((left < 1 - _TRACE) & (left > _TRACE), "overlap earlier ones, which keep what they share", names)
    return kept.without(left <= _TRACE, "lie wholly within earlier ones", names)


def _nothing_left(features: Features, kind: str, notes: list[str], maps: Maps) -> str:
    """Why no outline can be used."""
    if len(features.table) == 0:
        return f"the GeoJSON must hold {kind}, but it has no feature; export the objects again."
    width, height = (float(at) for at in maps.to_px0(maps.shape[0] - 0.5, maps.shape[1] - 0.5))
    left, top, right, bottom = shapely.total_bounds(features.outlines_px0)
    return (
        f"{kind} must lie on the slide, x_px0 0 ... {width:.0f}, y_px0 0 ... {height:.0f}, but none does: "
        f"{'; '.join(notes)}; the coordinates are x {left:.0f} ... {right:.0f}, y {top:.0f} ... {bottom:.0f}. "
        "Export outlines in pixels of the full-resolution slide, as QuPath does."
    )
