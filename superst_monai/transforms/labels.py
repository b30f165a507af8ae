"""Draw spots into a label image: which spot, if any, each pixel is part of."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from superst_monai.data.section import SECOND_PART, SPOT_COLUMNS, Section
from superst_monai.errors import ShapeError

Label = NDArray[np.int64]
Array = NDArray[np.float64]


def draw_spots(
    x_px: ArrayLike,
    y_px: ArrayLike,
    radius_px: ArrayLike,
    shape_hw: tuple[int, int],
    *,
    square: bool = False,
    chunk_px: int = 4_000_000,
) -> Label:
    """Label each pixel with the spot it belongs to.

    A pixel belongs to a spot when its centre lies at most the radius away from the spot's (for a square: in x and
    in y). Where spots overlap the nearest centre wins, of equally near ones the first. The pixel that holds a spot's
    centre counts as covered, so that a spot smaller than a pixel is not lost. Spots are clipped at the borders.

    Args:
        x_px: spot centres `(S,)`, pixel i covers [i, i + 1) [px].
        y_px: spot centres `(S,)` [px].
        radius_px: radius, or half the side of a square, `(S,)` or one for all [px].
        shape_hw: height and width of the label image [px].
        square: spots are squares along the axes.
        chunk_px: pixels tested at once; bounds the memory.
    Returns:
        Label `(H, W)`: 0 none, i = spot i - 1.
    Raises:
        ShapeError: centres and radii differ in length, are not finite, or a radius is not positive.
    """
    x, y, radius = _checked(x_px, y_px, radius_px)
    height, width = shape_hw
    best = np.full(height * width, np.inf)  # squared distance to the owner of each pixel
    label = np.zeros(height * width, np.int64)
    first_row, n_rows = _extent(y, radius, height)
    first_column, n_columns = _extent(x, radius, width)
    seen = np.flatnonzero((n_rows > 0) & (n_columns > 0))
    if len(seen) == 0:
        return label.reshape(height, width)
    box = (int(n_rows[seen].max()), int(n_columns[seen].max()))
    step = max(1, chunk_px // (box[0] * box[1]))
    for start in range(0, len(seen), step):  # chunks of spots
        part = seen[start : start + step]
        row = first_row[part, None, None] + np.arange(box[0])[:, None]  # (s, h, 1)
        column = first_column[part, None, None] + np.arange(box[1])  # (s, 1, w)
        covered, distance = _cover(x[part], y[part], radius[part], row, column, square=square)
        covered &= (row < height) & (column < width)
        _claim(label, best, (row * width + column)[covered], distance[covered], part[np.nonzero(covered)[0]])
    return label.reshape(height, width)


def _checked(x_px: ArrayLike, y_px: ArrayLike, radius_px: ArrayLike) -> tuple[Array, Array, Array]:
    """Return centres and radii as float64 `(S,)`."""
    x, y = np.asarray(x_px, np.float64), np.asarray(y_px, np.float64)
    radius = np.asarray(radius_px, np.float64)
    if x.ndim != 1 or x.shape != y.shape or radius.shape not in ((), x.shape):
        raise ShapeError(
            f"x_px, y_px and radius_px must be one number per spot, got {x.shape}, {y.shape} and {radius.shape}; "
            "take them from one spot table."
        )
    radius = np.broadcast_to(radius, x.shape)
    bad = ~(np.isfinite(x) & np.isfinite(y) & np.isfinite(radius) & (radius > 0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ShapeError(
            f"spots must have finite centres and positive radii, {int(bad.sum())} of {len(x)} do not (first: spot {i}, "
            f"x_px={x[i]}, y_px={y[i]}, radius_px={radius[i]}); drop them."
        )
    return x, y, radius


def _extent(centre: Array, radius: Array, length: int) -> tuple[Label, Label]:
    """First pixel and number of pixels that each spot can reach along one axis, clipped to the image."""
    first = np.clip(np.floor(centre - radius), 0, length)
    end = np.clip(np.floor(centre + radius) + 1, 0, length)
    return first.astype(np.int64), (end - first).astype(np.int64)


def _cover(
    x: Array, y: Array, radius: Array, row: Label, column: Label, *, square: bool
) -> tuple[NDArray[np.bool_], Array]:
    """Whether each spot covers each pixel of its box, and the squared distance of the centres, `(s, h, w)` both."""
    dy = row + 0.5 - y[:, None, None]  # (s, h, 1)
    dx = column + 0.5 - x[:, None, None]  # (s, 1, w)
    reach = radius[:, None, None]
    distance = dy**2 + dx**2  # (s, h, w)
    inside = (abs(dy) <= reach) & (abs(dx) <= reach) if square else distance <= reach**2
    centre = (row == np.floor(y)[:, None, None]) & (column == np.floor(x)[:, None, None])
    return inside | centre, distance


def _claim(label: Label, best: Array, pixel: Label, distance: Array, spot: Label) -> None:
    """Give each pixel to the nearest spot, in place; earlier spots keep pixels that are equally near."""
    order = np.lexsort((spot, distance, pixel))
    pixel, distance, spot = pixel[order], distance[order], spot[order]
    first = np.diff(pixel, prepend=-1) > 0  # nearest spot of each pixel in this chunk
    pixel, distance, spot = pixel[first], distance[first], spot[first]
    nearer = distance < best[pixel]
    best[pixel[nearer]] = distance[nearer]
    label[pixel[nearer]] = spot[nearer] + 1


def draw_section(section: Section, mpp: float, shape_hw: tuple[int, int]) -> Label:
    """Label the pixels of a raster over a section with its spots; both parts of a merged spot are that spot.

    Args:
        section: with spots.
        mpp: um per pixel of the raster.
        shape_hw: its height and width [px].
    Returns:
        Label `(H, W)`: 0 none, i = spot i - 1.
    Raises:
        ShapeError: as `draw_spots`.
    """
    x, y, radius = (section.spots[name].to_numpy(np.float64) / mpp for name in SPOT_COLUMNS)
    if set(SECOND_PART) <= set(section.spots):
        x2, y2 = (section.spots[name].to_numpy(np.float64) / mpp for name in SECOND_PART)
        x, y, radius = np.concatenate([x, x2]), np.concatenate([y, y2]), np.tile(radius, 2)
    part = draw_spots(x, y, radius, shape_hw, square=section.shape == "square")
    return np.where(part > section.n_spots, part - section.n_spots, part)


def add_outside(label: Label, tissue: NDArray[np.bool_], n_spots: int) -> Label:
    """Make the pixels that are neither tissue nor spot a support of their own, whose counts are zero.

    Args:
        label: `(H, W)`, 0 none, i = spot i - 1.
        tissue: `(H, W)`.
        n_spots: S.
    Returns:
        Label `(H, W)` in which those pixels are S + 1; tissue between the spots stays 0.
    Raises:
        ShapeError: label and tissue differ in shape, or a label exceeds n_spots.
    """
    if label.shape != tissue.shape:
        raise ShapeError(f"label and tissue must share (H, W), got {label.shape} and {tissue.shape}; crop them alike.")
    if label.size and not 0 <= label.min() <= label.max() <= n_spots:
        raise ShapeError(
            f"labels must lie in 0..{n_spots} (n_spots), got {label.min()}..{label.max()}; pass the number drawn."
        )
    return np.where((label == 0) & ~tissue, n_spots + 1, label).astype(np.int64)


def spot_labels(section: Section) -> Label:
    """Label the pixels of a section with its spots and the support outside the tissue.

    Returns:
        Label `(H, W)`, section pixels: 0 tissue between spots, i = row i - 1 of `section.counts`, S + 1 outside.
    """
    label = draw_section(section, section.mpp, section.tissue.shape)
    return add_outside(label, section.tissue, section.n_spots)
