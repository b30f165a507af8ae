"""How spots lie on slide and tissue, and how they would lie if scaled, flipped or transposed. Pure geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Move = Callable[[Array, Array], Array]  # points (N, 2) and slide size (2,) [um] -> points (N, 2) [um]

_MOST_CELLS = 200  # of the grid of points on which spots and tissue are compared, along each axis

FLIPS: Mapping[str, Move] = {
    "flipped left-right": lambda p, size: np.stack([size[0] - p[:, 0], p[:, 1]], axis=1),
    "flipped top-bottom": lambda p, size: np.stack([p[:, 0], size[1] - p[:, 1]], axis=1),
    "turned by 180 degrees": lambda p, size: size - p,
    "transposed (x and y swapped)": lambda p, size: p[:, ::-1],
    "turned by 90 degrees clockwise": lambda p, size: np.stack([size[0] - p[:, 1], p[:, 0]], axis=1),
    "turned by 90 degrees counter-clockwise": lambda p, size: np.stack([p[:, 1], size[1] - p[:, 0]], axis=1),
    "transposed about the other diagonal": lambda p, size: size - p[:, ::-1],
}


@dataclass(frozen=True, eq=False)
class Layout:
    """Spots on a slide.

    Attributes:
        centre_um: `(S, 2)`, x and y, finite [um].
        radius_um: `(S,)` [um].
        size_um: width and height of the slide `(2,)` [um].
        tissue: mask `(H, W)`.
        mpp: size of a pixel of the mask [um].
    """

    centre_um: Array
    radius_um: Array
    size_um: Array
    tissue: Mask
    mpp: float

    def scaled(self, factor: float) -> Layout:
        """The same spots with coordinates and radii times `factor`."""
        return replace(self, centre_um=self.centre_um * factor, radius_um=self.radius_um * factor)

    def on_slide(self, points_um: Array) -> Mask:
        """Whether points `(..., 2)` [um] lie on the slide `(...)`; its border belongs to it."""
        return np.asarray(((points_um >= 0) & (points_um <= self.size_um)).all(axis=-1))

    def on_tissue(self, points_um: Array) -> Mask:
        """Whether points `(..., 2)` [um] lie on tissue `(...)`; points off the slide do not."""
        height, width = self.tissue.shape
        limit = np.array([width, height])
        cell = np.floor(points_um / self.mpp)
        inside = ((cell >= 0) & (cell < limit)).all(axis=-1)
        cell = np.clip(cell, 0, limit - 1).astype(np.int64)
        return self.tissue[cell[..., 1], cell[..., 0]] & inside

    def share_on_slide(self) -> float:
        """Share of the centres that lie on the slide."""
        return float(self.on_slide(self.centre_um).mean())

    def share_on_tissue(self) -> float:
        """Share of the spots' area on tissue, from the centre and eight points round it at 0.7 radius."""
        angle = np.arange(8) * (np.pi / 4)
        ring = np.concatenate([np.zeros((1, 2)), 0.7 * np.stack([np.cos(angle), np.sin(angle)], axis=1)])  # (9, 2)
        points = self.centre_um[:, None] + self.radius_um[:, None, None] * ring  # (S, 9, 2)
        return float(self.on_tissue(points).mean())

    def pitch_um(self, quantile: float = 0.5) -> float | None:
        """Distance from a spot to the nearest other one, a quantile over spots [um]; None for a single spot."""
        if len(self.centre_um) < 2:
            return None
        distance, _ = KDTree(self.centre_um).query(self.centre_um, k=2)
        return float(np.quantile(distance[:, 1], quantile))

    def extent_overlap(self) -> float:
        """Intersection over union of the bounding boxes of spots and tissue."""
        rows, columns = (np.flatnonzero(self.tissue.any(axis=axis)) for axis in (1, 0))
        low = np.array([columns[0], rows[0]]) * self.mpp
        high = np.array([columns[-1] + 1, rows[-1] + 1]) * self.mpp
        reach = float(np.median(self.radius_um))
        first, last = self.centre_um.min(axis=0) - reach, self.centre_um.max(axis=0) + reach
        common = float(np.clip(np.minimum(high, last) - np.maximum(low, first), 0.0, None).prod())
        return common / (float((high - low).prod()) + float((last - first).prod()) - common)

    def fit(self) -> float:
        """How well scale and place of the spots suit the tissue, 0..1: area on tissue times overlap of extents."""
        return self.share_on_tissue() * self.extent_overlap()


def factor_candidates(scale_factors: Mapping[str, float]) -> dict[str, float]:
    """Factors that carry coordinates from one known frame to another, by a name that says which.

    Args:
        scale_factors: factors from full-resolution pixels to the pixels of other images.
    Returns:
        Each ratio of two frames, full resolution included, that differs from 1 by more than 0.1 %.
    """
    frames = {"1": 1.0} | {name: value for name, value in scale_factors.items() if np.isfinite(value) and value > 0}
    ratios = {
        (top if bottom == "1" else f"{top} / {bottom}"): frames[top] / frames[bottom]
        for top in frames
        for bottom in frames
    }
    return {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > 1e-3}


def flip_agreement(layout: Layout) -> dict[str, float]:
    """Compare the ground that spots cover with the tissue, as they lie ("as given") and flipped or transposed.

    Points of a grid over the spots' bounding box, a pitch apart, are covered where a spot is near. Their agreement
    with the tissue under them is the phi coefficient (correlation of two yes-no variables), -1..1.

    Returns:
        Agreement of each arrangement that stays on the slide; empty when less than a tenth of the box is not
        covered, since then nothing can be told.
    """
    pitch = layout.pitch_um()
    if not pitch:
        return {}
    low, high = layout.centre_um.min(axis=0), layout.centre_um.max(axis=0)
    step = max(pitch, float((high - low).max()) / _MOST_CELLS)
    x, y = (np.arange(low[axis], high[axis] + step / 2, step) for axis in (0, 1))
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)  # (N, 2)
    distance, _ = KDTree(layout.centre_um).query(points)
    covered = distance <= 0.75 * step
    if covered.mean() > 0.9:
        return {}
    scores = {"as given": _phi(covered, layout.on_tissue(points))}
    for name, move in FLIPS.items():
        if layout.on_slide(move(layout.centre_um, layout.size_um)).mean() > 0.99:
            scores[name] = _phi(covered, layout.on_tissue(move(points, layout.size_um)))
    return scores


def _phi(one: Mask, other: Mask) -> float:
    """Phi coefficient of two yes-no variables; 0 when one of them is constant."""
    if one.all() or not one.any() or other.all() or not other.any():
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
