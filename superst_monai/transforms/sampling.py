"""Which patch is item i of epoch e: a pure function of the seed, so that workers and restarts change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from superst_monai.errors import RunError, ShapeError
from superst_monai.types import Key


def share_items(areas: ArrayLike, n_items: int) -> NDArray[np.int64]:
    """Assign the items of an epoch to sections in proportion to their tissue area, evenly interleaved.

    Args:
        areas: tissue of each section `(N,)`, not negative [any unit].
        n_items: patches of one epoch.
    Returns:
        Section of each item `(n_items,)`, int64. Section n appears `n_items * areas[n] / sum(areas)` times, rounded by
        largest remainder (ties to the earlier section), spread over the epoch, so that batches of consecutive items
        mix sections.
    Raises:
        ShapeError: an area is negative or not finite, or there is no tissue at all.
    Source: Hamilton's method of apportionment.
    """
    area = np.asarray(areas, dtype=np.float64)
    if area.ndim != 1 or not np.isfinite(area).all() or (area < 0).any() or area.sum() == 0:
        raise ShapeError(
            f"items are shared out by the tissue area of each section, which must be finite, not negative and not "
            f"all zero, got {area.tolist()}; check the tissue masks."
        )
    quota = n_items * area / area.sum()
    items = np.floor(quota).astype(np.int64)
    neediest = np.argsort(items - quota, kind="stable")
    items[neediest[: n_items - items.sum()]] += 1
    section = np.repeat(np.arange(area.size), items)
    rank = np.arange(n_items) - np.repeat(items.cumsum() - items, items)
    return section[np.argsort((rank + 0.5) / items[section], kind="stable")]


class PatchDataset(Dataset[dict[str, Any]]):
    """The patches of one epoch; item i depends on nothing but (seed, epoch, i).

    The epoch lies in shared memory, so that `set_epoch` also reaches the persistent workers of a DataLoader.

    Args:
        chain: of random transforms that turns `{Key.SECTION: int}` into a finished patch.
        sections_of_items: section of each item `(N,)`, see `share_items`.
        seed: not negative.
    Raises:
        RunError: the seed is negative.
    """

    def __init__(self, chain: Compose, sections_of_items: Sequence[int] | NDArray[np.int64], seed: int) -> None:
        """Keep the chain; start at epoch 0."""
        if seed < 0:
            raise RunError(f"the seed of a PatchDataset must not be negative, got {seed}; pass 0 or more.")
        self.chain = chain
        self.sections_of_items = np.asarray(sections_of_items, dtype=np.int64)
        self.seed = seed
        self._in_use = Lock()  # the chain's random state belongs to one patch at a time
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch whose patches the items are."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Turn to the patches of another epoch, 0 or later; call it before the loader is iterated."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the number of patches of one epoch."""
        return len(self.sections_of_items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return patch `index` of the epoch.

        Raises:
            IndexError: the index is not 0 ... N - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} of an epoch of {len(self)} patches")
        return self.patch(index, self.epoch)

    def patch(self, index: int, epoch: int) -> dict[str, Any]:
        """Patch `index`, 0 ... N - 1, of any epoch; threads may ask at the same time."""
        sequence = np.random.SeedSequence((self.seed, epoch, index))
        with self._in_use:
            self.chain.set_random_state(seed=int(sequence.generate_state(1)[0]))
            found: dict[str, Any] = self.chain({Key.SECTION: int(self.sections_of_items[index])})
        return found

    def __getstate__(self) -> dict[str, Any]:
        """What goes to a worker process; it has a lock of its own."""
        return {name: value for name, value in vars(self).items() if name != "_in_use"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo `__getstate__`."""
        vars(self).update(state, _in_use=Lock())
