"""Patches with different numbers of spots in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from superst_monai.errors import ShapeError
from superst_monai.transforms.collate import collate_patches
from superst_monai.types import Key


def patch(n_spots: int, section: int, *, size: int = 6, n_genes: int = 3) -> dict[str, Any]:
    """A random finished patch."""
    generator = torch.Generator().manual_seed(100 * section + n_spots)
    return {
        Key.IMAGE: torch.rand(3, size, size, generator=generator),
        Key.LABEL: torch.randint(0, n_spots + 1, (1, size, size), generator=generator),
        Key.COUNTS: torch.rand(n_spots, n_genes, generator=generator).to_sparse(),
        Key.SHARE: torch.rand(n_spots, generator=generator),
        Key.OCCLUDED: torch.rand(1, size, size, generator=generator) > 0.5,
        Key.SECTION: section,
    }


def test_a_batch_can_be_taken_apart_again():
    """Un-collating by hand gives the patches back, one without spots among them."""
    patches = [patch(4, 2), patch(0, 0), patch(1, 5), patch(7, 2)]
    batch = collate_patches(patches)
    first = 0
    for index, one in enumerate(patches):
        n_spots = len(one[Key.COUNTS])
        label = batch[Key.LABEL][index]
        assert torch.equal(batch[Key.IMAGE][index], one[Key.IMAGE])
        assert torch.equal(batch[Key.OCCLUDED][index], one[Key.OCCLUDED])
        assert torch.equal((label - first).clamp_min(0), one[Key.LABEL][0])
        assert torch.equal(batch[Key.COUNTS].to_dense()[first : first + n_spots], one[Key.COUNTS].to_dense())
        assert torch.equal(batch[Key.SHARE][first : first + n_spots], one[Key.SHARE])
        assert batch[Key.SPOT_SECTION][first : first + n_spots].tolist() == [one[Key.SECTION]] * n_spots
        first += n_spots
    assert batch[Key.COUNTS].shape == (first, 3)
    assert batch[Key.SECTION].tolist() == [2, 0, 5, 2]
    assert batch[Key.LABEL].dtype == batch[Key.SECTION].dtype == batch[Key.SPOT_SECTION].dtype == torch.int64


def test_every_pixel_finds_the_counts_of_its_own_patch():
    """Looking a pixel up in the batch gives what looking it up in its patch gives; 0 stays 0."""
    patches = [patch(3, 0), patch(5, 1)]
    batch = collate_patches(patches)
    none = torch.zeros(1, 3)
    for index, one in enumerate(patches):
        expected = torch.cat([none, one[Key.COUNTS].to_dense()])[one[Key.LABEL][0]]
        assert torch.equal(torch.cat([none, batch[Key.COUNTS].to_dense()])[batch[Key.LABEL][index]], expected)


def test_a_batch_without_spots_is_legal():
    """No spot anywhere gives counts (0, G) and labels 0."""
    batch = collate_patches([patch(0, 0), patch(0, 1)])
    assert batch[Key.COUNTS].shape == (0, 3)
    assert batch[Key.SPOT_SECTION].shape == (0,)
    assert not batch[Key.LABEL].any()


@pytest.mark.parametrize("patches", [[], [patch(1, 0), patch(1, 0, size=4)], [patch(1, 0), patch(1, 0, n_genes=2)]])
def test_patches_that_do_not_fit_together_are_refused(patches: list[dict[str, Any]]):
    """A batch needs at least one patch, one size and one gene list."""
    with pytest.raises(ShapeError, match="at least one patch, all of one size and gene list"):
        collate_patches(patches)
