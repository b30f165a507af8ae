"""How well a map tells apart pixels within spots: area under the ROC curve, against spots spread out as baseline."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree
from sklearn.metrics import roc_auc_score

from superst_monai.errors import ShapeError


def pixel_auc(score: NDArray[np.floating], truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Chance that a pixel of the subtype scores higher than one that is not of it (ties count half).

    Args:
        score: what should rank the pixels `(H, W)`, such as the expected UMIs of a marker gene.
        truth: pixels of the subtype `(H, W)`.
        mask: pixels to judge `(H, W)`, such as the tissue.

    Returns:
        Area under the receiver operating characteristic, 0.5 by chance, 1 at best.

    Raises:
        ShapeError: the three differ in shape, a judged score is not finite, or the judged pixels are all of one kind.
    """
    if not score.shape == truth.shape == mask.shape:
        raise ShapeError(
            f"score, truth and mask must share (H, W), got {score.shape}, {truth.shape} and {mask.shape}; "
            "bring them to one mpp."
        )
    inside = mask.astype(bool)
    judged, wanted = score[inside], truth[inside].astype(bool)
    n_bad = int((~np.isfinite(judged)).sum())
    if n_bad:
        raise ShapeError(
            f"every judged score must be finite, got {n_bad} that are not of {judged.size}; mask them out."
        )
    n_wanted = int(wanted.sum())
    if n_wanted in (0, wanted.size):
        raise ShapeError(
            f"judged pixels must lie both in and out of the subtype, got {n_wanted} in it of {wanted.size}; "
            "widen the mask or choose a subtype that occurs."
        )
    return float(roc_auc_score(wanted, judged))


def spread_evenly(
    spot_values: NDArray[np.floating],
    x_px: NDArray[np.floating],
    y_px: NDArray[np.floating],
    radius_px: ArrayLike,
    shape: tuple[int, int],
) -> NDArray[np.floating]:
    """Give each pixel the value of the spot it lies in, or of the nearest one: a map that knows no image.

    Args:
        spot_values: one number per spot `(S,)`.
        x_px: spot centres `(S,)` [px, corner convention: pixel i covers [i, i + 1)].
        y_px: spot centres `(S,)` [px].
        radius_px: radius of the spots, one number or `(S,)` [px]; nearest means nearest to a spot's edge.
        shape: (H, W) of the map [px].

    Returns:
        Map `(H, W)` of the dtype of `spot_values`.

    Raises:
        ShapeError: there is no spot, or values and centres differ in number.
    """
    n_spots = len(spot_values)
    radius = np.asarray(radius_px, dtype=float)
    radius = np.full(n_spots, radius) if radius.ndim == 0 else radius
    if n_spots == 0 or not n_spots == len(x_px) == len(y_px) == len(radius):
        raise ShapeError(
            f"spot_values, x_px, y_px and radius_px must hold one number for each of at least one spot, "
            f"got {n_spots}, {len(x_px)}, {len(y_px)} and {len(radius)}; take them from the same rows."
        )
    row, col = np.indices(shape)
    pixels = np.stack([col.ravel() + 0.5, row.ravel() + 0.5], axis=1)  # (HW, 2)
    centres = np.stack([x_px, y_px], axis=1)
    nearest, gap = np.zeros(len(pixels), dtype=np.int64), np.full(len(pixels), np.inf)
    for size in np.unique(radius):  # one pass a size; spots of a platform share one
        mine = np.flatnonzero(radius == size)
        distance, found = KDTree(centres[mine]).query(pixels)
        closer = distance - size < gap
        gap[closer], nearest[closer] = (distance - size)[closer], mine[found[closer]]
    return np.asarray(spot_values[nearest].reshape(shape))
