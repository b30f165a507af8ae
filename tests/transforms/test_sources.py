"""A section as random access for patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from superst_monai.errors import ShapeError
from superst_monai.transforms.sources import PatchSource, check_sources, renumber


def arrays(**other: Any) -> dict[str, Any]:
    """The arrays of a section of 4 x 5 pixels with 3 spots, some of them replaced."""
    rng = np.random.default_rng(0)
    good = {
        "image": rng.integers(0, 256, (4, 5, 3), dtype=np.uint8),
        "label": rng.integers(0, 5, (4, 5)),
        "tissue": rng.random((4, 5)) > 0.5,
        "counts": csr_matrix(rng.integers(0, 9, (3, 7)).astype(np.int32)),
    }
    return good | other


def test_a_source_holds_the_arrays_it_was_built_from():
    """The image turns channel first; label, tissue and counts keep their values; the tissue index lists the mask."""
    given = arrays()
    source = PatchSource.from_arrays(**given)
    np.testing.assert_array_equal(source.image.numpy(), np.moveaxis(given["image"], -1, 0))
    np.testing.assert_array_equal(source.label.numpy(), given["label"])
    np.testing.assert_array_equal(source.tissue.numpy(), given["tissue"])
    np.testing.assert_array_equal(source.tissue_index.numpy(), np.flatnonzero(given["tissue"]))
    assert (source.counts != given["counts"]).nnz == 0
    assert (source.n_spots, source.n_genes, source.outside) == (3, 7, 4)
    assert source.tissue_area_px == given["tissue"].sum()


def test_a_source_is_independent_of_the_arrays_it_was_built_from():
    """Changing the caller's mask afterwards does not change the source."""
    given = arrays()
    source = PatchSource.from_arrays(**given)
    before = source.tissue.clone()
    given["tissue"][:] = ~given["tissue"]
    assert torch.equal(source.tissue, before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"image": np.zeros((3, 4, 5), np.uint8)}, r"image must be \(H, W, 3\) uint8, got \(3, 4, 5\)"),
        ({"image": np.zeros((4, 5, 3))}, "uint8, got .* float64"),
        ({"label": np.zeros((4, 5))}, "label must hold integers, got float64"),
        ({"label": np.full((4, 5), 5)}, r"0 \.\.\. S \+ 1 = 4 .* got 5 \.\.\. 5"),
        ({"label": np.full((4, 5), -1)}, r"got -1 \.\.\. -1"),
        ({"tissue": np.zeros((4, 5), np.uint8)}, "tissue must be bool, got uint8"),
        ({"tissue": np.zeros((5, 4), bool)}, r"must share \(H, W\), got \(4, 5\), \(4, 5\) and \(5, 4\)"),
        ({"share": np.ones(3)}, r"share must be \(S \+ 1,\) in 0 \.\.\. 1 for counts .* got \(3,\)"),
        ({"share": np.full(4, 1.5)}, r"share must be \(S \+ 1,\) in 0 \.\.\. 1"),
        ({"counts": np.zeros((3, 7))}, r"scipy sparse matrix \(S, G\), got ndarray"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(other: dict[str, Any], message: str):
    """The message names the array at fault and what came."""
    with pytest.raises(ShapeError, match=message):
        PatchSource.from_arrays(**arrays(**other))


def test_all_faults_are_reported_at_once():
    """Two faults of one section make one message."""
    with pytest.raises(ShapeError, match=r"label must hold integers.*; tissue must be bool"):
        PatchSource.from_arrays(**arrays(label=np.zeros((4, 5)), tissue=np.zeros((4, 5))))


@pytest.mark.parametrize("genes", [[], [7, 6]])
def test_sources_that_cannot_share_a_batch_are_refused(genes: list[int]):
    """A chain needs at least one section and one gene list."""
    sources = [PatchSource.from_arrays(**arrays(counts=csr_matrix((3, n)))) for n in genes]
    with pytest.raises(ShapeError, match="at least one section, all with the same genes"):
        check_sources(sources)


@pytest.mark.parametrize("values", [[[0, 9, 4], [4, 0, 30]], [[9, 4, 4], [4, 5, 30]], [[0, 0, 0], [0, 0, 0]]])
def test_renumbering_keeps_who_is_who(values: list[list[int]]):
    """Ids become 1 ... n in ascending order and the list of old ids turns them back; 0 stays 0 (plain loop)."""
    label = torch.tensor(values, dtype=torch.int32)
    local, ids = renumber(label)
    plain = {0: 0} | {old: new for new, old in enumerate(sorted({*label.flatten().tolist()} - {0}), start=1)}
    assert local.tolist() == [[plain[value] for value in row] for row in values]
    assert ids.tolist() == sorted(plain)[1:]
    assert local.dtype == ids.dtype == torch.int64
