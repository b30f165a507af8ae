"""How much of each pixel each polygon covers: exact areas, for all polygons at once and without a finer raster."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
_TRACE = 1e-7  # shares below are rounding [pixels]


class Shares(NamedTuple):
    """M pairs of a support and a pixel that it covers, wholly or in part; a pair comes once."""

    support: Indices  # (M,)
    pixel: Indices  # (M,), row * w + column of a box of w columns
    share: NDArray[np.float32]  # (M,), of the pixel's area, in (0, 1]


def polygon_shares(polygons: NDArray[Any], shape: tuple[int, int]) -> Shares:
    """Share of each pixel's area that each polygon covers.

    Every edge is cut at the grid lines. A piece that runs through a pixel covers what lies between it and the pixel's
    right border, and its whole height in every pixel further right; with the sign of its direction these add up to the
    area inside, so that the shares of a polygon sum to its area. (The signed-area rule of font rasterisers, as in
    R. Levien's font-rs.)

    Args:
        polygons: valid Polygon or MultiPolygon `(S,)`, anything else covers nothing; pixel (row, column) of the box is
            [column, column + 1) x [row, row + 1).
        shape: height and width of the box [px]; what lies outside is not counted.
    """
    height, width = shape
    whole = shapely.box(0, 0, width, height)
    crossing = np.flatnonzero(~shapely.contains_properly(whole, polygons))
    inside = np.array(polygons, dtype=object)
    inside[crossing] = shapely.intersection(inside[crossing], whole)
    owner, start, end = _edges(inside)
    piece = _cut(start, end)
    order = np.lexsort((piece.col, piece.row, owner[piece.edge]))
    key = np.stack([owner[piece.edge], piece.row, piece.col])[:, order]
    first = np.flatnonzero((np.diff(key, prepend=-1) != 0).any(axis=0))  # pieces of one pixel follow each other
    share, rise = (np.add.reduceat(values[order], first) for values in (piece.area, piece.rise))
    return _fill(key[:, first], share, rise, width)


class _Pieces(NamedTuple):
    """Edges cut at the grid lines."""

    edge: Indices
    row: Indices
    col: Indices
    rise: Floats  # height of the piece, with sign
    area: Floats  # of its pixel, to the right of the piece, with sign


def _edges(polygons: NDArray[Any]) -> tuple[Indices, Floats, Floats]:
    """Owner `(E,)`, start and end `(E, 2)` of all edges, so directed that areas inside are positive."""
    parts, polygon = shapely.get_parts(polygons, return_index=True)
    is_polygon = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    parts, polygon = parts[is_polygon], polygon[is_polygon]
    rings, part = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    first = np.flatnonzero(ring[:-1] == ring[1:])
    start, end, ring = xy[first], xy[first + 1], ring[first]
    doubled = start[:, 0] * end[:, 1] - end[:, 0] * start[:, 1]
    ahead = np.bincount(ring, doubled, minlength=len(rings)) > 0  # x to y, clockwise as rows go down
    hole = np.diff(part, prepend=-1) == 0  # the first ring of a polygon is its outline
    swap = (ahead != hole)[ring]
    start[swap], end[swap] = end[swap], start[swap]
    return polygon[part[ring]], start, end  # down on the left of what is inside, up on its right


def _cut(start: Floats, end: Floats) -> _Pieces:
    """Cut edges `(E, 2)` where they cross a grid line."""
    edges, cuts = [np.repeat(np.arange(len(start)), 2)], [np.tile([0.0, 1.0], len(start))]
    for axis in range(2):
        low, high = np.minimum(start[:, axis], end[:, axis]), np.maximum(start[:, axis], end[:, axis])
        first = np.floor(low).astype(np.int64) + 1
        count = np.maximum(np.ceil(high).astype(np.int64) - first, 0)  # lines strictly between the ends
        edge = np.repeat(np.arange(len(start)), count)
        line = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
        edges.append(edge)
        cuts.append((line - start[edge, axis]) / (end[edge, axis] - start[edge, axis]))
    edge, cut = np.concatenate(edges), np.concatenate(cuts)
    order = np.lexsort((cut, edge))
    edge, cut = edge[order], cut[order]
    along = start[edge] + cut[:, None] * (end[edge] - start[edge])  # (C, 2)
    rise = np.diff(along[:, 1])
    piece = np.flatnonzero((edge[:-1] == edge[1:]) & (rise != 0))  # horizontal ones bound nothing
    middle = (along[piece] + along[piece + 1]) / 2
    col, row = np.floor(middle).astype(np.int64).T
    return _Pieces(edge[piece], row, col, rise[piece], rise[piece] * (col + 1 - middle[:, 0]))


def _fill(key: Indices, share: Floats, rise: Floats, width: int) -> Shares:
    """Add to pixels on outlines, sorted by owner, row and column, what lies further left; fill the runs between."""
    owner, row, col = key
    passed = np.cumsum(rise)  # closed outlines sum to zero in each row, so that each row starts anew
    same_row = (owner[:-1] == owner[1:]) & (row[:-1] == row[1:])
    gap = np.where(same_row & (passed[:-1] > _TRACE), np.diff(col) - 1, 0)  # pixels inside without an outline
    run = np.repeat(np.arange(len(gap)), gap)
    step = np.arange(len(run)) - np.repeat(np.cumsum(gap) - gap, gap)
    pixel = np.concatenate([row * width + col, row[run] * width + col[run] + 1 + step])
    covered = np.concatenate([share + passed - rise, passed[run]])
    some = (covered > _TRACE) & np.concatenate([col < width, np.ones(len(run), bool)])
    return Shares(np.concatenate([owner, owner[run]])[some], pixel[some], covered[some].clip(0, 1).astype(np.float32))
