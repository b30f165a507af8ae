"""Sparse counts that are never sorted anew are those that torch would sort."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from scipy.sparse import csr_matrix

from superst_monai.transforms.counts import rows_of, select_rows, stack_counts


def table(seed: int, n: int = 7, genes: int = 11) -> csr_matrix:
    """Counts whose columns do not ascend, with an empty row."""
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((n, genes)) < 0.4, rng.integers(1, 9, (n, genes)), 0)
    dense[2] = 0
    found = csr_matrix(dense)
    places = [(rng.permutation(stop - first) + first) for first, stop in pairwise(found.indptr)]
    order = np.concatenate(places)
    return csr_matrix((found.data[order], found.indices[order], found.indptr), shape=found.shape)


def assert_as_sorted(found: torch.Tensor, dense: np.ndarray) -> None:
    """The tensor holds `dense`, and its places are those that `coalesce` would give."""
    assert found.is_coalesced()
    again = torch.sparse_coo_tensor(found.indices(), found.values(), found.shape, check_invariants=True).coalesce()
    assert torch.equal(found.indices(), again.indices())
    assert torch.equal(found.values(), again.values())
    np.testing.assert_array_equal(found.to_dense().numpy(), dense)


def test_rows_come_in_the_order_asked_for_with_empty_ones_below():
    """Row i of the result is row rows[i] of the table, columns ascending (against dense arithmetic)."""
    counts, rows = table(0), np.array([5, 2, 0, 5])
    assert_as_sorted(rows_of(counts, rows), counts.toarray()[rows])
    below = np.vstack([counts.toarray()[rows], np.zeros((2, 11))])
    assert_as_sorted(rows_of(counts, rows, n_rows=6), below)
    assert_as_sorted(rows_of(counts, np.zeros(0, np.int64), n_rows=1), np.zeros((1, 11)))


def test_what_is_stored_twice_is_added_and_stored_zeros_are_left_out():
    """As the dense table has it, which stays as it is."""
    counts = csr_matrix((np.array([2.0, 0.0, 3.0, 1.0]), np.array([4, 1, 4, 0]), np.array([0, 3, 4])), shape=(2, 6))
    found = rows_of(counts, np.array([1, 0]))
    assert_as_sorted(found, np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 5, 0]], float))
    assert found.values().tolist() == [1, 5]
    assert counts.nnz == 4


def test_stacked_counts_are_those_of_cat():
    """Parts lie one below the other, empty ones included."""
    parts = [rows_of(table(seed), np.arange(n), n_rows=n) for seed, n in ((1, 3), (2, 0), (3, 7))]
    found = stack_counts(parts)
    assert_as_sorted(found, torch.cat([part.to_dense() for part in parts]).numpy())
    assert torch.equal(found.indices(), torch.cat(parts).coalesce().indices())


def test_selected_rows_are_those_of_index_select():
    """Some rows, none and all, against torch's own."""
    counts = rows_of(table(4), np.arange(7))
    for rows in ([0, 3, 6], [], range(7), [2]):
        chosen = torch.tensor(list(rows), dtype=torch.int64)
        assert_as_sorted(select_rows(counts, chosen), counts.index_select(0, chosen).to_dense().numpy())
