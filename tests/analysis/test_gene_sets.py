"""Shares of gene sets: against plain sums over single genes, block by block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from superst_monai.analysis import gene_sets
from superst_monai.analysis.gene_sets import gene_set_shares
from superst_monai.errors import RunError
from superst_monai.inference.maps import open_maps

Maker = Callable[..., Path]


def test_shares_of_one_sample_are_ratios_of_gene_maps(make_maps: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one sample a share is the set's genes over all genes, has no spread, and is 0 where nothing is expected."""
    monkeypatch.setattr(gene_sets, "_BLOCK_PX", 5 * 36)  # rows do not divide into whole blocks
    path = make_maps(n_samples=1)
    maps = open_maps(path)
    a, b, c = (maps.gene(gene)[0] for gene in "ABC")
    shares = gene_set_shares(path, {"one": ["B"], "two": ["C", "A"]})
    inside = maps.tissue
    np.testing.assert_allclose(shares["one"].mean[inside], b[inside] / (a + b + c)[inside], rtol=1e-4)
    np.testing.assert_allclose((shares["one"].mean + shares["two"].mean)[inside], 1.0, rtol=1e-5)
    assert (shares["two"].mean[~inside] == 0).all()
    assert (shares["two"].sd == 0).all()


def test_spread_is_over_samples(make_maps: Maker) -> None:
    """Mean and sd are those of the shares of single samples (against a plain loop)."""
    path = make_maps(n_samples=3)
    maps = open_maps(path)
    pixel = np.zeros(maps.shape, dtype=np.int64)
    pixel[12, 20] = 1
    sums = maps.sum_over(pixel)
    each = (sums.total_count[:, 0] * np.exp(sums.logits))[:, :]  # (N, G)
    want = each[:, 1] / each.sum(1)
    share = gene_set_shares(path, {"one": ["B"]})["one"]
    assert share.mean[12, 20] == pytest.approx(want.mean(), rel=1e-5)
    assert share.sd[12, 20] == pytest.approx(want.std(), rel=1e-4)


def test_sets_must_hold_genes_of_the_maps(make_maps: Maker) -> None:
    """Unknown genes and empty sets are refused together."""
    with pytest.raises(RunError, match="one lacks X; two is empty; choose others"):
        gene_set_shares(make_maps(), {"one": ["A", "X"], "two": []})
