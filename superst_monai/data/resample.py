"""Conservative resampling: an output pixel is the exact integral of a smooth image that keeps every input pixel's mean.

The image is read as a piecewise quadratic whose mean over each pixel is that pixel's value (the derivative of the
cubic Hermite spline through the cumulative sum, with central-difference slopes). Integrating it over the boxes of the
new pixels gives one linear, separable rule for all ratios with the laws a map needs: an aligned ratio of 1 is the
identity, a half-pixel shift is cubic convolution (-1, 9, 9, -1)/16, a reduction is an antialiasing area mean, a
partition of the image keeps its sum, linear ramps stay exact at any sub-pixel place, and an output pixel does not
depend on the box it was read in.

Source: conservative remapping by the cumulative sum, as in Colella & Woodward 1984 (doi:10.1016/0021-9991(84)90143-8)
without its limiter; Keys 1981 (doi:10.1109/TASSP.1981.1163711) is its case at ratio 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

MARGIN = 2  # input pixels beyond the box that the rule may touch on either side
_ON_GRID = 1e-7  # [input px] a box this close to whole pixels is those pixels


def resample(
    image: NDArray[Any],
    *,
    start: tuple[float, float],
    step: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[Any]:
    """Resample a box of an image onto a regular grid; beyond the image its edge pixels repeat.

    Output pixel (r, c) covers the input's rows `start[0] + r * step[0]` to `start[0] + (r + 1) * step[0]`; columns
    alike.

    Args:
        image: `(H, W, C)`, any real dtype.
        start: row and column of the box's corner [input px, corner convention]; may be fractional or negative.
        step: height and width of one output pixel [input px], positive.
        shape: rows and columns of the output `(h, w)`.

    Returns:
        `(h, w, C)`; float32, or in the input's dtype (perhaps a view) where the grid takes whole pixels. A value can
        overshoot the input's range by about 7 % of an edge, as with any cubic; `to_uint8` clips it.
    """
    out = _along_rows(image, start[0], step[0], shape[0])  # (h, W, C)
    out = _along_rows(out.transpose(1, 0, 2), start[1], step[1], shape[1]).transpose(1, 0, 2)  # (h, w, C)
    return np.ascontiguousarray(out)


def to_uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Round and clip to 0..255; uint8 passes through."""
    out: NDArray[np.uint8] = image if image.dtype == np.uint8 else np.rint(image).clip(0, 255).astype(np.uint8)
    return out


def weights(start: float, step: float, n_out: int, n_in: int) -> sp.csr_array:
    """Build the rule along one axis: `(n_out, n_in)` float32, rows summing to 1.

    Args:
        start: where the first output pixel begins [input px].
        step: width of an output pixel [input px].
        n_out: number of output pixels.
        n_in: number of input pixels; indices beyond 0..n_in - 1 are moved to the edge pixel.
    """
    edges = start + step * np.arange(n_out + 1)
    edges = np.where(np.abs(edges - np.rint(edges)) < _ON_GRID, np.rint(edges), edges)
    first = np.floor(edges).astype(np.int64)  # pixel that each edge cuts
    before, cut, after = _part_before(edges - first)
    row = np.arange(n_out)
    whole = np.diff(first)  # pixels between the two cuts of each output pixel
    whole_row = np.repeat(row, whole)
    whole_col = np.repeat(first[:-1] - np.cumsum(whole) + whole, whole) + np.arange(whole.sum())
    left, right = first[:-1], first[1:]
    rows = np.concatenate([whole_row, np.tile(row, 6)])
    cols = np.concatenate([whole_col, right - 1, right, right + 1, left - 1, left, left + 1])
    parts = [np.ones(len(whole_row)), before[1:], cut[1:], after[1:], -before[:-1], -cut[:-1], -after[:-1]]
    values = np.concatenate(parts) / step
    rule = sp.coo_array((values, (rows, np.clip(cols, 0, n_in - 1))), shape=(n_out, n_in)).tocsr()
    rule.eliminate_zeros()
    return rule.astype(np.float32)


def _part_before(t: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Weights of pixels i - 1, i, i + 1 in the integral over [i, i + t), t in [0, 1): the cubic Hermite basis."""
    slope_left, slope_right, value = t**3 - 2 * t**2 + t, t**3 - t**2, 3 * t**2 - 2 * t**3
    return slope_left / 2, value + (slope_left + slope_right) / 2, slope_right / 2


def _along_rows(image: NDArray[Any], start: float, step: float, n_out: int) -> NDArray[Any]:
    """Resample axis 0 of `(N, M, C)`; whole pixels are sliced out."""
    n_in = image.shape[0]
    row = round(start)
    if abs(step - 1) * n_out < _ON_GRID and abs(start - row) < _ON_GRID and 0 <= row <= n_in - n_out:
        return image[row : row + n_out]
    flat = image.reshape(n_in, -1).astype(np.float32, copy=False)
    return np.asarray(weights(start, step, n_out, n_in) @ flat).reshape(n_out, *image.shape[1:])
