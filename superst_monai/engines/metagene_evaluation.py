"""What the training patches say of the metagenes: which are missed, which are used, which can leave together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from superst_monai.engines.prepare import prepare_batch
from superst_monai.engines.processes import of_all, rank
from superst_monai.model.generative import Batch
from superst_monai.model.metagene_scores import removal_losses
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.collate import collate_patches
from superst_monai.transforms.sampling import PatchDataset

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """What an evaluation found.

    Attributes:
        loss: expression log-likelihood that is lost without each metagene `(K,)` [nat/spot]; NaN out of use, infinite
            for the only one.
        share: of each metagene in the scaled activity of the spots `(K,)`, sum 1.
    """

    loss: Floats
    share: Floats

    @property
    def in_use(self) -> NDArray[np.bool_]:
        """Metagenes in use `(K,)`."""
        return ~np.isnan(self.loss)

    @property
    def used(self) -> NDArray[np.bool_]:
        """Metagenes with at least 1 % of the scaled activity, or half of the largest share where all are small."""
        return self.in_use & (self.share >= min(0.01, 0.5 * float(self.share.max())))

    @property
    def collapsed(self) -> bool:
        """Whether one metagene is all that is used, of a network that has more."""
        return len(self.loss) > 1 and int(self.used.sum()) == 1

    def as_record(self) -> dict[str, Any]:
        """Plain numbers, None for a loss that is none."""
        loss = [float(x) if np.isfinite(x) else None for x in self.loss]
        return {"loss": loss, "share": self.share.tolist(), "collapsed": self.collapsed}

    def weak(self, least_gain: float) -> list[int]:
        """Metagenes in use that do not contribute, the least missed first."""
        return [k for k in self._ascending() if self.loss[k] < least_gain]

    def contributing(self, least_gain: float) -> list[int]:
        """The other metagenes in use, the most missed first."""
        return [k for k in reversed(self._ascending()) if self.loss[k] >= least_gain]

    def _ascending(self) -> list[int]:
        return [int(k) for k in np.argsort(self.loss, kind="stable") if self.in_use[k]]


class MetageneEvaluation:
    """Scores metagenes on a fixed set of training patches, those of epoch 0, which training never sees.

    Several processes share the patches out and sum what they find, so that all of them get the same numbers.

    Args:
        dataset: of the training patches.
        batch_size: patches scored at a time.
        n_batches: batches in the set.
    """

    def __init__(self, dataset: PatchDataset, *, batch_size: int, n_batches: int = 4) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.n_batches = n_batches

    def score(self, network: FusionVAE, *, alone: bool = False) -> Scores | None:
        """Score the metagenes of a network; None if no spot lies whole in the patches.

        Args:
            network: to score.
            alone: take all patches in this process.
        """
        active = network.generative.active
        each = torch.eye(len(active), dtype=torch.bool, device=active.device)[active]
        found = self._removal(network, each if len(each) > 1 else each[:0], alone=alone)
        if found is None:
            return None
        loss = np.full(len(active), np.nan)
        loss[active.cpu().numpy()] = found[0] if len(each) > 1 else np.inf
        return Scores(loss, found[1] / found[1].sum())

    def expendable(self, network: FusionVAE, weak: list[int], *, least_gain: float, alone: bool = False) -> list[int]:
        """The first of some metagenes, as many as are together missed less than `least_gain` each.

        Two that can do each other's work are missed little one by one and much together.

        Args:
            network: to score.
            weak: metagenes that do not contribute, the least missed first.
            least_gain: of a metagene that contributes [nat/spot].
            alone: as for `score`.
        """
        if len(weak) < 2:
            return weak
        active = network.generative.active
        removed = torch.zeros(len(weak), len(active), dtype=torch.bool, device=active.device)
        for n, metagene in enumerate(weak):
            removed[n:, metagene] = True
        found = self._removal(network, removed, alone=alone)
        together = [] if found is None else found[0].tolist()
        return weak[: max((n for n, loss in enumerate(together, start=1) if loss < n * least_gain), default=1)]

    def _removal(self, network: FusionVAE, removed: Tensor, *, alone: bool) -> tuple[Floats, Floats] | None:
        """Loss without each set `(M,)` [nat/spot] and size of each metagene `(K,)`; None without any spot."""
        found = torch.zeros(len(removed) + removed.shape[1] + 1, dtype=torch.float64, device=removed.device)
        for batch in self._batches(str(removed.device), alone=alone):
            n_spots = (batch.counts.sum(dim=1).to_dense() > 0).sum()[None]  # the support outside the tissue is none
            found += torch.cat([*removal_losses(network, batch, removed), n_spots])
        total = found.cpu() if alone else of_all(found[None].cpu()).sum(dim=0)
        loss, size, n = np.split(total.numpy(), [len(removed), -1])
        return (loss / n, size) if n[0] else None

    def _batches(self, device: str, *, alone: bool) -> Iterator[Batch]:
        """The set, or the part of it that falls to this process."""
        first, n = (0, 1) if alone or not dist.is_initialized() else (rank(), dist.get_world_size())
        for start in range(first * self.batch_size, self.n_batches * self.batch_size, n * self.batch_size):
            items = range(start, min(start + self.batch_size, len(self.dataset)))
            if items:
                yield prepare_batch(collate_patches([self.dataset.patch(i, 0) for i in items]), device)[2][0]
