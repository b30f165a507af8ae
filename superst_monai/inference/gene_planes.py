"""Mean and spread over posterior samples, of many genes at once, at each pixel of a tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_PIXELS_AT_ONCE = 2048
"""So few that the numbers of a hundred genes stay in the cache of a core: four fifths of the time of 16,384."""
Floats = NDArray[np.float32]


def mean_and_sd(samples: NDArray[Any], weight: Floats, *, mean: Floats, sd: Floats) -> None:
    """Moments over N samples of weighted sums over K metagenes, on all threads of torch.

    Args:
        samples: `(N, K, h, w)`, of any float type.
        weight: of each gene `(N, G, K)`.
        mean: receives the mean over n of sum_k weight_ngk samples_nk, `(G, h, w)`.
        sd: receives its standard deviation, `(G, h, w)`.
    """
    activity, weights, to_mean, to_sd = (torch.from_numpy(array) for array in (samples, weight, mean, sd))
    n_samples, n_genes, _ = weights.shape
    together = weights.permute(1, 0, 2).reshape(n_genes, -1) / n_samples  # (G, N K)
    height, width = activity.shape[2:]
    step = max(1, _PIXELS_AT_ONCE // width)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        here = activity[:, :, rows].float().flatten(2)  # (N, K, p)
        middle = together @ here.flatten(0, 1)
        square = torch.zeros_like(middle)
        for n in range(n_samples):
            deviation = torch.addmm(middle, weights[n], here[n], beta=-1)
            square.addcmul_(deviation, deviation)
        to_mean[:, rows] = middle.view(n_genes, -1, width)
        to_sd[:, rows] = square.div_(n_samples).sqrt_().view(n_genes, -1, width)
