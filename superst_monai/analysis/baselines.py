"""What the model must beat: the mean of each gene, and a linear regression on the spot's colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from superst_monai.errors import ShapeError

Floats = NDArray[np.float64]


def spot_histograms(image: NDArray[np.uint8], label: NDArray[np.int64], n_spots: int, *, bins: int = 5) -> Floats:
    """Count how a spot's pixels spread over intensities, channel by channel.

    Args:
        image: RGB `(H, W, 3)`.
        label: spot of each pixel `(H, W)`: 0 none, i is spot i - 1; labels above S (outside tissue) are left out.
        n_spots: S.
        bins: bins of equal width over 0..255.

    Returns:
        Shares of the spot's pixels `(S, 3 * bins)`, red's bins first; each channel sums to 1, or 0 in a spot
        without pixels.

    Raises:
        ShapeError: image and label differ in height or width.
    """
    if image.shape != (*label.shape, 3):
        raise ShapeError(
            f"image must be (H, W, 3) of the label's (H, W), got {image.shape} and {label.shape}; "
            "take both from one section."
        )
    covered = (label > 0) & (label <= n_spots)
    spot = label[covered] - 1  # (P,)
    level = np.minimum(image[covered].astype(np.int64) * bins // 255, bins - 1)  # (P, 3)
    size = n_spots * bins
    counts = [np.bincount(spot * bins + level[:, c], minlength=size).reshape(n_spots, bins) for c in range(3)]
    n_pixels = np.bincount(spot, minlength=n_spots)[:, None]
    return np.concatenate(counts, axis=1) / np.maximum(n_pixels, 1)  # (S, 3 * bins)


def fit_gene_mean(counts: csr_matrix | NDArray[Any]) -> Floats:
    """Mean count of each gene `(G,)` over training spots `(S, G)`: the best guess that looks at nothing.

    Raises:
        ShapeError: there is no training spot.
    """
    if counts.shape[0] == 0:
        raise ShapeError(f"counts must hold at least one training spot, got {counts.shape}; name training sections.")
    return np.asarray(counts.mean(axis=0), dtype=np.float64).ravel()


def fit_image_intensity(histograms: Floats, counts: csr_matrix | NDArray[Any]) -> Floats:
    """Regress each gene's counts on the colour histograms by least squares.

    The shares of a channel sum to 1, so with the intercept the columns depend on each other; of the solutions the
    one of least norm is taken (Moore-Penrose inverse), as `numpy.linalg.lstsq` does. Sparse counts stay sparse.

    Args:
        histograms: of training spots `(S, F)`, from `spot_histograms`.
        counts: of the same spots `(S, G)`.

    Returns:
        Coefficients `(1 + F, G)`, the intercept first.

    Raises:
        ShapeError: there is no training spot, or the two differ in spots.
    """
    if len(histograms) != counts.shape[0] or len(histograms) == 0:
        raise ShapeError(
            f"histograms and counts must hold the same spots, at least one, got {len(histograms)} and "
            f"{counts.shape[0]}; stack the training sections in one order."
        )
    inverse = np.linalg.pinv(_design(histograms))  # (1 + F, S)
    return np.asarray((counts.T @ inverse.T).T, dtype=np.float64)


def predict_image_intensity(histograms: Floats, coefficients: Floats) -> Floats:
    """Predict counts `(S, G)` from colour histograms `(S, F)` and `(1 + F, G)` coefficients; never below 0.

    Raises:
        ShapeError: the histograms have other bins than the training's.
    """
    if histograms.shape[1] + 1 != len(coefficients):
        raise ShapeError(
            f"histograms must have the {len(coefficients) - 1} columns of the training, got {histograms.shape[1]}; "
            "use the same bins."
        )
    return np.asarray((_design(histograms) @ coefficients).clip(0, None))


def _design(histograms: Floats) -> Floats:
    """Histograms with a leading column of ones `(S, 1 + F)`."""
    return np.column_stack([np.ones(len(histograms)), histograms])
