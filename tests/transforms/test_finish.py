"""Whole spots only, their counts, plain tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from superst_monai.transforms.crops import CenterPatchd
from superst_monai.transforms.finish import FinishPatchd, KeepWholeSpotsd, counts_of, whole_spots
from superst_monai.transforms.sources import PatchKey
from superst_monai.types import Key


def test_spots_that_go_on_beyond_the_patch_are_erased():
    """Spot 1 lies inside, 2 ends exactly at the border, 3 goes on beyond it, 4 is the outside and stays."""
    label = torch.tensor(
        [
            [0, 0, 0, 3, 0, 4],
            [0, 0, 2, 3, 0, 4],
            [0, 1, 2, 0, 0, 4],
            [0, 1, 0, 0, 4, 4],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    assert whole_spots(label, keep=4).tolist() == [[0, 2, 0, 0], [1, 2, 0, 0], [1, 0, 0, 4]]


def test_no_id_is_kept_by_mistake():
    """When the outside does not occur, keep=0 saves no cut spot, and an absent id to keep saves no other."""
    label = torch.tensor([[0, 2, 0], [0, 2, 0], [0, 0, 0]])
    assert whole_spots(label, keep=0).tolist() == [[0]]
    assert whole_spots(label, keep=3).tolist() == [[0]]


@pytest.mark.parametrize("centre", [(120, 100), (0, 0), (5, 95), (239, 199), (60, 100)])
def test_exactly_the_whole_spots_remain(make_source, centre: tuple[int, int]):
    """A spot stays just when all pixels it has on the slide lie in the patch (plain loop over the spots)."""
    source = make_source(tissue="left")
    row, col = centre
    size = 64
    sample = CenterPatchd([source], side=size + 2)({Key.SECTION: 0, PatchKey.ROW: row, PatchKey.COL: col})
    got = KeepWholeSpotsd([source])(sample)
    inside = np.zeros(source.label.shape, bool)
    inside[max(row - 32, 0) : row + 32, max(col - 32, 0) : col + 32] = True
    label = source.label.numpy()
    whole = [s for s in range(1, source.outside) if (label == s).any() and inside[label == s].all()]
    assert [int(i) for i in got[PatchKey.SPOT_IDS] if i != source.outside] == whole
    areas = torch.bincount(got[Key.LABEL].flatten(), minlength=len(got[PatchKey.SPOT_IDS]) + 1)[1:]
    assert areas[: len(whole)].tolist() == [int((label == s).sum()) for s in whole]
    assert got[Key.IMAGE].shape == (3, size, size)
    assert got[Key.LABEL].shape == (1, size, size)


def test_the_outside_stays_when_all_spots_go(make_source):
    """A patch on bare glass holds one support, the outside, although its border cuts it."""
    source = make_source()
    sample = CenterPatchd([source], side=10)({Key.SECTION: 0, PatchKey.ROW: -50, PatchKey.COL: 10})
    got = FinishPatchd([source])(KeepWholeSpotsd([source])(sample))
    assert got[PatchKey.SPOT_IDS].tolist() == [source.outside]
    assert torch.equal(got[Key.LABEL], torch.ones(1, 8, 8, dtype=torch.int64))
    assert torch.equal(got[Key.COUNTS].to_dense(), torch.zeros(1, 4))


def test_counts_follow_the_ids(make_source):
    """Row i of the counts is the row of the section that label i came from; the outside counts nothing."""
    source = make_source()
    ids = torch.tensor([2, 7, source.n_spots, source.outside])
    dense = source.counts.toarray()
    expected = np.vstack([dense[1], dense[6], dense[-1], 0 * dense[0]]).astype(np.float32)
    np.testing.assert_array_equal(counts_of(source, ids).to_dense().numpy(), expected)
    np.testing.assert_array_equal(counts_of(source, ids[:3]).to_dense().numpy(), expected[:3])
    assert counts_of(source, ids[:0]).shape == (0, 4)


def test_finished_patches_are_plain_and_scaled(make_source):
    """[0, 1] becomes [-0.9, 0.9], what lies beyond is clipped, the mask is all False unless set, no MetaTensor."""
    source = make_source()
    image = MetaTensor(torch.tensor([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0]).view(1, 1, 6).expand(3, 1, 6).clone())
    sample = {
        Key.IMAGE: image,
        Key.LABEL: torch.zeros(1, 1, 6, dtype=torch.int64),
        PatchKey.SPOT_IDS: torch.zeros(0, dtype=torch.int64),
        Key.SECTION: 0,
    }
    got = FinishPatchd([source])(sample)
    torch.testing.assert_close(got[Key.IMAGE][1, 0], torch.tensor([-0.9, -0.9, -0.45, 0.0, 0.9, 0.9]))
    assert type(got[Key.IMAGE]) is torch.Tensor
    assert float(image.min()) == -1.0
    assert got[Key.OCCLUDED].dtype == torch.bool
    assert not got[Key.OCCLUDED].any()
    occluded = torch.ones(1, 1, 6, dtype=torch.bool)
    assert FinishPatchd([source])({**sample, Key.OCCLUDED: occluded})[Key.OCCLUDED] is occluded
