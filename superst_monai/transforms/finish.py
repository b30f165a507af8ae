"""Turn a warped window into what the network takes: whole spots only, their counts, plain tensors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms.transform import Transform
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from superst_monai.transforms.counts import rows_of
from superst_monai.transforms.sources import PatchKey, PatchSource, check_sources, renumber
from superst_monai.types import Key

MARGIN = 1  # pixels kept round a patch while it is cut and warped: a spot that shows there goes on beyond the patch
IMAGE_RANGE = 0.9  # an image is scaled from [0, 1] to [-0.9, 0.9]


def whole_spots(label: Tensor, *, keep: int) -> Tensor:
    """Trim the margin of a label image and erase the spots that go on beyond the patch.

    A spot is cut when it shows in the margin, so one that ends exactly at the border stays, as does one that the
    slide itself cuts off: there the margin shows the support outside the tissue.

    Args:
        label: `(H + 2, W + 2)`, int64, ids 0 ... n.
        keep: an id that stays though it is cut (the support outside the tissue); 0 for none.
    Returns:
        Label `(H, W)`, int64, in which the ids of cut spots are 0.
    """
    inner = label[MARGIN:-MARGIN, MARGIN:-MARGIN]
    whole = label.new_ones(max(int(label.max()), keep) + 1, dtype=torch.bool)
    for edge in (label[:MARGIN], label[-MARGIN:], label[:, :MARGIN], label[:, -MARGIN:]):
        whole[edge] = False
    whole[keep] = True
    return inner * whole[inner]


class KeepWholeSpotsd(Transform):
    """Trim the margin of image and label and leave out the spots that the border of the patch cuts.

    Key.IMAGE `(3, H + 2, W + 2)` becomes `(3, H, W)`; Key.LABEL `(1, H + 2, W + 2)` with whole numbers in float32
    becomes `(1, H, W)` int64, numbered 1 ... n anew; PatchKey.SPOT_IDS follows. Both come out as plain tensors.

    Args:
        sources: the sections, to know the support outside the tissue, which stays though it is cut.
    """

    def __init__(self, sources: Sequence[PatchSource]) -> None:
        """Check and keep the sections."""
        self.sources = check_sources(sources)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with whole spots only."""
        sample = dict(data)
        image = convert_to_tensor(sample[Key.IMAGE], track_meta=False)
        label = convert_to_tensor(sample[Key.LABEL], track_meta=False)[0].round().long()
        ids = sample[PatchKey.SPOT_IDS]
        outside = self.sources[sample[Key.SECTION]].outside  # the greatest id of a section, so the last of a window
        keep = len(ids) if len(ids) and int(ids[-1]) == outside else 0
        label, kept = renumber(whole_spots(label, keep=keep))
        sample[Key.IMAGE] = image[:, MARGIN:-MARGIN, MARGIN:-MARGIN].contiguous()
        sample[Key.LABEL] = label[None]  # (1, H, W)
        sample[PatchKey.SPOT_IDS] = ids[kept - 1]
        return sample


class FinishPatchd(Transform):
    """Scale the image to [-0.9, 0.9] and attach the counts of the spots of the patch.

    Adds Key.COUNTS `(n, G)` float32, sparse, whose row i - 1 belongs to label i (zeros for the support outside the
    tissue), Key.SHARE `(n,)` float32, which part of its UMIs these are, and Key.OCCLUDED `(1, H, W)` bool, all False,
    where no transform has set it. Tensors come out plain.

    Args:
        sources: the sections.
    Raises:
        ShapeError: the sections differ in their number of genes.
    """

    def __init__(self, sources: Sequence[PatchSource]) -> None:
        """Check and keep the sections."""
        self.sources = check_sources(sources)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the finished sample."""
        sample = dict(data)
        image = convert_to_tensor(sample[Key.IMAGE], track_meta=False)
        source = self.sources[sample[Key.SECTION]]
        sample[Key.IMAGE] = to_network_range(image)
        sample[Key.COUNTS] = counts_of(source, sample[PatchKey.SPOT_IDS])
        sample[Key.SHARE] = source.share[sample[PatchKey.SPOT_IDS] - 1]
        sample.setdefault(Key.OCCLUDED, torch.zeros_like(sample[Key.LABEL], dtype=torch.bool))
        return sample


def to_network_range(image: Tensor) -> Tensor:
    """Scale an image from [0, 1] to [-0.9, 0.9], the range that the networks take; what lies outside is clipped."""
    return image.clamp(0, 1).mul_(2 * IMAGE_RANGE).sub_(IMAGE_RANGE)


def counts_of(source: PatchSource, ids: Tensor) -> Tensor:
    """Look up the counts of some labels of a section.

    Args:
        source: the section.
        ids: ascending labels of the section `(n,)`, int64, 1 ... S + 1.
    Returns:
        `(n, G)`, float32, sparse COO, coalesced; zeros for the support outside the tissue.
    """
    spots = ids[ids < source.outside]  # the outside, if there, is last
    return rows_of(source.counts, spots.numpy() - 1, n_rows=len(ids))
