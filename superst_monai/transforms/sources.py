"""One section as random access for patches: image, spot labels, tissue and counts side by side in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse
from torch import Tensor

from superst_monai.errors import ShapeError


class PatchKey(StrEnum):
    """Keys of a sample that live inside a patch chain only; those that reach a batch are in `types.Key`."""

    ROW = "row"  # section pixel of the patch's centre, given by the caller of a validation chain
    COL = "col"
    SPOT_IDS = "spot_ids"  # (n,) int64: entry i - 1 is the section-wide label that is i in this patch


@dataclass(frozen=True, eq=False)
class PatchSource:
    """One section at the training resolution; build it with `from_arrays`.

    Attributes:
        image: histology `(3, H, W)`, uint8.
        label: support of each pixel `(H, W)`, int32; 0 none, i row i - 1 of `counts`, S + 1 outside the tissue.
        tissue: `(H, W)`, bool.
        counts: `(S, G)`, scipy CSR.
        share: which part of its UMIs the counts of support i hold, at i - 1 `(S + 1,)`, float32.
        tissue_index: flat indices of the tissue pixels `(T,)`, int64, ascending.
    """

    image: Tensor
    label: Tensor
    tissue: Tensor
    counts: csr_matrix
    share: Tensor
    tissue_index: Tensor

    @classmethod
    def from_arrays(
        cls,
        image: NDArray[np.uint8],
        label: NDArray[np.integer[Any]],
        tissue: NDArray[np.bool_],
        counts: csr_matrix,
        share: NDArray[np.floating[Any]] | None = None,
    ) -> PatchSource:
        """Check the arrays of a section against each other and lay them out for cropping.

        Args:
            image: histology `(H, W, 3)`, uint8, as a section stores it.
            label: spot of each pixel `(H, W)`, integers 0 ... S + 1; spots to withhold from training are already 0.
            tissue: `(H, W)`, bool.
            counts: `(S, G)`, scipy sparse, rows in the order of the label ids; `(0, 0)` for a slide alone.
            share: part of the UMIs of each spot that `counts` hold, then that of the support outside the tissue
                `(S + 1,)`; 0 for a support to ignore. None is 1 for all.
        Raises:
            ShapeError: the arrays do not belong together; the message lists every fault.
        """
        faults = _faults(image, label, tissue, counts, share)
        if faults:
            raise ShapeError(
                "the arrays of a PatchSource must describe one section: "
                + "; ".join(faults)
                + ". Draw label and tissue from the same section, at the same mpp, as the image."
            )
        return cls(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            label=torch.from_numpy(label.astype(np.int32)),
            tissue=torch.from_numpy(np.array(tissue)),
            counts=csr_matrix(counts),
            share=torch.ones(counts.shape[0] + 1) if share is None else torch.from_numpy(share.astype(np.float32)),
            tissue_index=torch.from_numpy(np.flatnonzero(tissue).astype(np.int64)),
        )

    @property
    def n_spots(self) -> int:
        """S, the number of rows of `counts`."""
        return int(self.counts.shape[0])

    @property
    def n_genes(self) -> int:
        """G, the number of columns of `counts`."""
        return int(self.counts.shape[1])

    @property
    def outside(self) -> int:
        """Label of the support outside the tissue, S + 1."""
        return self.n_spots + 1

    @property
    def tissue_area_px(self) -> int:
        """Number of tissue pixels [px]."""
        return int(self.tissue_index.numel())


def _faults(image: Any, label: Any, tissue: Any, counts: Any, share: Any) -> list[str]:
    """Return what is wrong with the arrays of a section, one phrase a fault."""
    faults = []
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        faults.append(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if not np.issubdtype(label.dtype, np.integer):
        faults.append(f"label must hold integers, got {label.dtype}")
    if tissue.dtype != np.bool_:
        faults.append(f"tissue must be bool, got {tissue.dtype}")
    if not image.shape[:2] == label.shape == tissue.shape:
        faults.append(
            f"image, label and tissue must share (H, W), got {image.shape[:2]}, {label.shape} and {tissue.shape}"
        )
    if not issparse(counts):
        faults.append(f"counts must be a scipy sparse matrix (S, G), got {type(counts).__name__}")
    elif label.size and not (label.min() >= 0 and label.max() <= counts.shape[0] + 1):
        faults.append(
            f"label must lie in 0 ... S + 1 = {counts.shape[0] + 1} for counts of shape {counts.shape}, "
            f"got {label.min()} ... {label.max()}"
        )
    if share is not None and not (share.shape == (counts.shape[0] + 1,) and ((share >= 0) & (share <= 1)).all()):
        faults.append(f"share must be (S + 1,) in 0 ... 1 for counts of shape {counts.shape}, got {share.shape}")
    return faults


def check_sources(sources: Sequence[PatchSource]) -> tuple[PatchSource, ...]:
    """Return the sources as a tuple once they can share batches.

    Raises:
        ShapeError: there is none, or they differ in their number of genes.
    """
    genes = sorted({source.n_genes for source in sources})
    if len(genes) != 1:
        raise ShapeError(
            f"a patch chain needs at least one section, all with the same genes, got {len(sources)} section(s) with "
            f"{genes} genes; bring their counts to one gene list first (a slide alone gets counts of shape (0, G))."
        )
    return tuple(sources)


def renumber(label: Tensor) -> tuple[Tensor, Tensor]:
    """Number the supports that occur in a label image 1 ... n, in the order of their ids.

    Args:
        label: any integer tensor; 0 is none.
    Returns:
        The new labels, int64, of the same shape, and the old ids `(n,)`, int64: entry i - 1 is now called i.
    """
    ids, local = torch.unique(label, return_inverse=True)
    if ids.numel() and int(ids[0]) == 0:
        return local, ids[1:].long()
    return local + 1, ids.long()
