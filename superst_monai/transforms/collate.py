"""Join patches with different numbers of spots into one batch with batch-wide spot ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from superst_monai.errors import ShapeError
from superst_monai.transforms.counts import stack_counts
from superst_monai.types import Key


def collate_patches(samples: Sequence[Mapping[Any, Any]]) -> dict[str, Tensor]:
    """Join finished patches into a batch; label i of the batch is row i - 1 of its counts.

    Args:
        samples: of B patches, each with Key.IMAGE `(3, H, W)`, Key.LABEL `(1, H, W)` int64 (0 is none, i is row
            i - 1 of its own counts), Key.COUNTS `(n, G)` sparse, coalesced, Key.SHARE `(n,)`, Key.OCCLUDED
            `(1, H, W)` and Key.SECTION int.
    Returns:
        Key.IMAGE `(B, 3, H, W)`, Key.LABEL `(B, H, W)` int64, Key.COUNTS `(S, G)` sparse with S the sum of all n,
        Key.SHARE `(S,)`, Key.OCCLUDED `(B, 1, H, W)`, Key.SECTION `(B,)` int64 and Key.SPOT_SECTION `(S,)` int64.
    Raises:
        ShapeError: there is no patch, or they differ in size or number of genes.
    """
    shapes = {(tuple(sample[Key.IMAGE].shape), sample[Key.COUNTS].shape[1]) for sample in samples}
    if len(shapes) != 1:
        raise ShapeError(
            f"a batch needs at least one patch, all of one size and gene list, got {len(samples)} patch(es) with "
            f"(image shape, genes) {sorted(shapes)}; take them from one chain."
        )
    n_spots = torch.tensor([len(sample[Key.COUNTS]) for sample in samples])  # (B,)
    before = (n_spots.cumsum(0) - n_spots)[:, None, None]  # spots of the patches before this one
    label = torch.cat([sample[Key.LABEL] for sample in samples])  # (B, H, W)
    section = torch.tensor([int(sample[Key.SECTION]) for sample in samples])
    return {
        Key.IMAGE: torch.stack([sample[Key.IMAGE] for sample in samples]),
        Key.LABEL: torch.where(label > 0, label + before, 0),
        Key.COUNTS: stack_counts([sample[Key.COUNTS] for sample in samples]),
        Key.SHARE: torch.cat([sample[Key.SHARE] for sample in samples]),
        Key.OCCLUDED: torch.stack([sample[Key.OCCLUDED] for sample in samples]),
        Key.SECTION: section,
        Key.SPOT_SECTION: section.repeat_interleave(n_spots),
    }
