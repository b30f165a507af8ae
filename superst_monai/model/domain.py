"""How far an image is from those that a network was trained on: statistics of blocks of pixels, and their law."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from superst_monai.errors import RunError
from superst_monai.model.generative import GenerativeModel

Floats = NDArray[np.float64]
_LEAST_KL = 1e-3  # [nat/px] added before the logarithm: divergences below it say nothing
_BLOCKS_A_NUMBER = 10  # of which a law must be fitted to at least so many blocks
_PARTS = 4  # that the blocks of one section are cut into


def block_statistics(model: GenerativeModel, image: Tensor, laws: Sequence[tuple[Tensor, Tensor]], h: Tensor) -> Tensor:
    """What the model makes of each block of an image; a block is a pixel of the deepest level, 2^(D-1) px wide.

    Args:
        model: its image decoder is asked.
        image: `(1, 3, H, W)` in [-0.9, 0.9].
        laws: mean and standard deviation of q(z_d | image), each `(1, C_d, H / 2^d, W / 2^d)`.
        h: features of a draw from these laws `(1, C_0, H, W)`.

    Returns:
        `(1 + D, H / 2^(D-1), W / 2^(D-1))` [nat/px]: log p(image | z), and for each level the divergence
        KL(q(z_d | image) || Normal(0, 1)) = sum (m^2 + s^2 - 1) / 2 - log s; means over the pixels of a block.
    """
    side = 2 ** (len(laws) - 1)
    mean, sd = model.image_decoder(h)
    law = torch.distributions.Normal(mean, sd, validate_args=False)
    loglik: Tensor = law.log_prob(image)  # type: ignore[no-untyped-call]
    found = [F.avg_pool2d(loglik.sum(dim=1, keepdim=True), side)]
    for level, (mean, sd) in enumerate(laws):
        divergence = ((mean**2 + sd**2 - 1) / 2 - sd.log()).sum(dim=1, keepdim=True)  # (1, 1, H_d, W_d)
        found.append(F.avg_pool2d(divergence, side >> level) / 4**level)
    return torch.cat(found, dim=1)[0]


@dataclass(frozen=True)
class Domain:
    """Law of the block statistics of the training sections.

    The distance of a block is that of Mahalanobis, of the statistics brought to a scale on which they are about
    normal (asinh of the log-likelihood, log of the divergences). It is two-sided: an image that is too easy to
    explain, such as a blurred one, is far too.

    Attributes:
        mean: of the scaled statistics, 1 + D numbers.
        precision: inverse of their covariance, (1 + D) rows.
        percentile_99: distance that a hundredth of the training blocks exceed, each section judged by the others, so
            that what differs from section to section is part of it.
        n_blocks: of the training sections.
    """

    mean: list[float]
    precision: list[list[float]]
    percentile_99: float
    n_blocks: int

    @classmethod
    def fit(cls, sections: Sequence[NDArray[Any]]) -> Domain | None:
        """Fit the law to the blocks of each section.

        Args:
            sections: `(1 + D, n)` each, from `block_statistics`.

        Returns:
            The law; None where there are too few blocks to tell.
        """
        blocks = [_scaled(section) for section in sections]
        together = np.concatenate(blocks, axis=1)  # (1 + D, n)
        enough = _BLOCKS_A_NUMBER * len(together)
        if together.shape[1] < enough:
            return None
        parts = [part for part in blocks if part.shape[1] >= enough]
        if len(parts) < 2:
            parts = np.array_split(together, _PARTS, axis=1)
        judged = []
        for i, part in enumerate(parts):
            law = _law(np.concatenate([*parts[:i], *parts[i + 1 :]], axis=1))
            judged.append(_distance(part, *law))
        mean, precision = _law(together)
        percentile = float(np.quantile(np.concatenate(judged), 0.99))
        return cls(mean.tolist(), precision.tolist(), percentile, together.shape[1])

    def distance(self, statistics: NDArray[Any]) -> NDArray[np.float32]:
        """Distance of each block from the training sections, in units of their 99th percentile.

        Args:
            statistics: `(1 + D, ...)`, from `block_statistics`.

        Returns:
            `(...)`; above 1 is farther than 99 % of the training.
        """
        flat = _scaled(statistics.reshape(len(statistics), -1))
        far = _distance(flat, np.array(self.mean), np.array(self.precision)) / self.percentile_99
        return far.reshape(statistics.shape[1:]).astype(np.float32)

    def to_json(self, weights_sha256: str) -> str:
        """Write the law down, with the hash of the weights that it is of."""
        return json.dumps({"weights_sha256": weights_sha256, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, weights_sha256: str, depth: int) -> Domain | None:
        """Read what `to_json` wrote; None if it is of other weights.

        Args:
            text: of the file.
            weights_sha256: of the weights at hand.
            depth: D of the network.

        Raises:
            RunError: the text is damaged or of a network of another depth.
        """
        try:
            found = dict(json.loads(text))
            if found.pop("weights_sha256") != weights_sha256:
                return None
            domain = cls(**found)
            numbers = np.concatenate([np.ravel(domain.precision), domain.mean, [domain.percentile_99]])
            whole = np.shape(domain.precision) == (1 + depth, 1 + depth) and len(domain.mean) == 1 + depth
            whole = whole and bool(np.isfinite(numbers.astype(np.float64)).all()) and domain.percentile_99 > 0
        except (ValueError, TypeError, KeyError) as exc:
            raise RunError(f"domain.json is damaged ({exc}); restore it from a copy of the run, or delete it.") from exc
        if not whole:
            raise RunError(
                f"domain.json must hold {1 + depth} finite means, their precision and a positive percentile_99, for a "
                f"network of depth {depth}; restore it from a copy of the run, or delete it."
            )
        return domain


def _scaled(statistics: NDArray[Any]) -> Floats:
    """Statistics `(1 + D, n)` on scales on which they are about normal."""
    found: Floats = statistics.astype(np.float64)
    return np.concatenate([np.arcsinh(found[:1]), np.log(np.maximum(found[1:], 0) + _LEAST_KL)])


def _law(blocks: Floats) -> tuple[Floats, Floats]:
    """Mean and precision of scaled statistics `(1 + D, n)`; a spread of a thousandth is the smallest."""
    precision: Floats = np.asarray(np.linalg.inv(np.cov(blocks) + 1e-6 * np.eye(len(blocks))), np.float64)
    return blocks.mean(axis=1), precision


def _distance(blocks: Floats, mean: Floats, precision: Floats) -> Floats:
    """Distance `(n,)` of Mahalanobis."""
    away = blocks - mean[:, None]
    found: Floats = np.sqrt(np.maximum(np.einsum("in,ij,jn->n", away, precision, away), 0))
    return found
