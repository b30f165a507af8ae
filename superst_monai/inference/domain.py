"""The out-of-domain guard: how far each part of a slide is from what the run was trained on, in numbers and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from superst_monai.inference.maps_writer import DOMAIN_CHANNELS
from superst_monai.inference.posterior import TileSampler
from superst_monai.inference.run import Run
from superst_monai.inference.tiles import Part
from superst_monai.model.domain import Domain, block_statistics

WARN_SHARE = 0.1
"""Share of the tissue beyond the 99th percentile of the training above which that part is called out of domain."""


def read_domain(run: Run) -> Domain | None:
    """The law of the run's training sections; None if the run has none, or has one of other weights.

    Raises:
        RunError: `domain.json` is damaged.
    """
    file = run.path / "domain.json"
    if not file.is_file():
        return None
    return Domain.from_json(file.read_text(), run.weights_sha256, run.network.arch.depth)


class TileGuard:
    """Measures one tile when it is drawn: pass it as `look`.

    Args:
        domain: of the run.
        sampler: that draws the tile.
        part: of the tile that is drawn.

    Attributes:
        layer: `DOMAIN_CHANNELS` of the tile's blocks `(3, h / 2^(D-1), w / 2^(D-1))`, rounded up.
    """

    def __init__(self, domain: Domain, sampler: TileSampler, part: Part) -> None:
        block = sampler.multiple
        self.layer = np.zeros(
            (len(DOMAIN_CHANNELS), -(-part.tile.height // block), -(-part.tile.width // block)), np.float32
        )
        self._domain, self._sampler, self._part = domain, sampler, part

    def __call__(self, image: Tensor, laws: Sequence[tuple[Tensor, Tensor]], h: Tensor) -> None:
        """Fill in the layer; see `posterior.Look`."""
        block = self._sampler.multiple
        edge = (self._sampler.halo.decoder + self._part.margin) // block
        found = block_statistics(self._sampler.network.generative, image, laws, h)[:, edge:-edge, edge:-edge]
        statistics = found.float().cpu().numpy()  # (1 + D, rows, cols)
        window, tissue = self._part.window, self._part.tissue
        whole = np.zeros((window.height, window.width), np.float32)
        whole[: tissue.shape[0], : tissue.shape[1]] = tissue
        share = F.avg_pool2d(torch.from_numpy(whole)[None, None], block)[0, 0].numpy()
        values = np.stack([self._domain.distance(statistics), statistics[0], statistics[1:].sum(axis=0)])
        top, left = (part.start // block for part in self._part.place)
        self.layer[:, top : top + share.shape[0], left : left + share.shape[1]] = values * (share >= 0.5)


def summarise(layer: zarr.Array[Any]) -> dict[str, Any]:
    """Number of blocks of tissue and the share of them beyond the 99th percentile of the training.

    Args:
        layer: `DOMAIN_CHANNELS` of a whole map; read a row of chunks at a time.
    """
    blocks = beyond = 0
    for row in range(0, layer.shape[1], layer.chunks[1]):
        distance: NDArray[np.float32] = np.asarray(layer[0, row : row + layer.chunks[1]])
        blocks += int((distance > 0).sum())
        beyond += int((distance > 1).sum())
    return {"blocks": blocks, "beyond_99": round(beyond / blocks, 6) if blocks else None}


def in_words(summary: dict[str, Any]) -> str:
    """Say what a summary means."""
    share = summary["beyond_99"]
    if share is None:
        return (
            "no block of the map is tissue by half, so it is not known whether the slide is like the training sections"
        )
    said = f"{100 * share:.1f} % of the tissue is farther from the training sections than 99 % of their own"
    if share <= WARN_SHARE:
        return f"{said}: in domain"
    return (
        f"{said}: that part is out of domain, and its prediction an extrapolation. Check stain, focus, scanner, "
        "resolution and organ; image `domain` of the store shows where"
    )
