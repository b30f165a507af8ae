"""Counts of spots as sparse tensors in the order that the likelihood reads, so that none has to be sorted anew.

A batch holds a million counts above 0; to `coalesce` them takes as long as a fifth of the network's step, and their
rows and columns ascend already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # undecided, torch warns


def rows_of(counts: csr_matrix, rows: NDArray[np.int64], *, n_rows: int | None = None) -> Tensor:
    """Counts of some spots, in their order, as the likelihood takes them.

    Args:
        counts: `(S, G)`.
        rows: of the spots `(n,)`.
        n_rows: of the result; those beyond n are empty. None is n.

    Returns:
        `(n_rows, G)` float32, sparse COO, coalesced.
    """
    chosen = counts[rows]
    chosen.sum_duplicates()  # which sorts the columns too
    chosen.eliminate_zeros()
    places = np.empty((2, chosen.nnz), np.int64)
    places[0], places[1] = np.repeat(np.arange(len(rows)), np.diff(chosen.indptr)), chosen.indices
    values = torch.from_numpy(chosen.data.astype(np.float32))
    return _in_order(torch.from_numpy(places), values, len(rows) if n_rows is None else n_rows, chosen.shape[1])


def stack_counts(parts: Sequence[Tensor]) -> Tensor:
    """Join coalesced counts `(n_i, G)` one below the other, `(S, G)` coalesced; the same as `torch.cat`."""
    before, places = 0, []
    for part in parts:
        row, column = part.indices()
        places.append(torch.stack([row + before, column]))
        before += len(part)
    values = torch.cat([part.values() for part in parts])
    return _in_order(torch.cat(places, dim=1), values, before, parts[0].shape[1])


def select_rows(counts: Tensor, rows: Tensor) -> Tensor:
    """Some rows of coalesced counts `(S, G)`, `(n, G)` coalesced; the same as `index_select`.

    Args:
        counts: sparse COO, coalesced.
        rows: `(n,)` int64, ascending, each once.
    """
    row, column = counts.indices()
    number = row.new_full((len(counts),), -1)
    number[rows] = torch.arange(len(rows), device=rows.device)
    place = number[row]
    kept = (place >= 0).nonzero().squeeze(1)
    places = torch.stack([place[kept], column[kept]])
    return _in_order(places, counts.values()[kept], len(rows), counts.shape[1])


def _in_order(places: Tensor, values: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """A sparse tensor whose places `(2, nnz)` ascend by row, then column, each once."""
    shape = (n_rows, n_columns)
    return torch.sparse_coo_tensor(places, values, shape, is_coalesced=True, check_invariants=False)
