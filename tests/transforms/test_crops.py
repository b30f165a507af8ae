"""Windows of a section at random tissue pixels and at given centres."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from superst_monai.errors import ShapeError
from superst_monai.transforms.crops import CenterPatchd, RandTissuePatchd, cut_window
from superst_monai.transforms.sources import PatchKey, PatchSource
from superst_monai.types import Key


@pytest.mark.parametrize("side", [1, 8, 9, 60])
@pytest.mark.parametrize("centre", [(20, 15), (0, 0), (39, 29), (-3, 33), (-100, 5), (10, 400)])
def test_a_window_is_a_slice_of_the_endless_slide(make_source, side: int, centre: tuple[int, int]):
    """Beyond the slide lie white glass and the support outside the tissue (against numpy's padding)."""
    source = make_source(40, 30)
    row, col = centre
    pad = 500
    wide = np.pad(source.image.numpy(), ((0, 0), (pad, pad), (pad, pad)), constant_values=255)
    support = np.pad(source.label.numpy(), pad, constant_values=source.n_spots + 1)
    rows, cols = (slice(pad + at - side // 2, pad + at - side // 2 + side) for at in (row, col))
    image, label = cut_window(source, row=row, col=col, side=side)
    np.testing.assert_array_equal(image.numpy(), wide[:, rows, cols])
    np.testing.assert_array_equal(label.numpy(), support[rows, cols])


def test_a_window_is_a_copy(make_source):
    """Painting a window leaves the section as it was."""
    source = make_source(40, 30)
    before = source.image.clone()
    image, label = cut_window(source, row=20, col=15, side=8)
    image.zero_(), label.zero_()
    assert torch.equal(source.image, before)
    assert int(source.label.max()) == source.n_spots


def test_local_labels_lead_back_to_the_section(make_source):
    """The label of a window, looked up in the list of ids, is the label of the section; the image is in [0, 1]."""
    source = make_source(40, 30, tissue="left")
    sample = CenterPatchd([source], side=16)({Key.SECTION: 0, PatchKey.ROW: 20, PatchKey.COL: 15})
    image, label = cut_window(source, row=20, col=15, side=16)
    local = sample[Key.LABEL][0].long()
    ids = torch.cat([torch.zeros(1, dtype=torch.int64), sample[PatchKey.SPOT_IDS]])
    torch.testing.assert_close(ids[local], label.long())
    torch.testing.assert_close(sample[Key.IMAGE], image / 255)
    assert sample[Key.LABEL].dtype == sample[Key.IMAGE].dtype == torch.float32
    assert sorted(local.unique().tolist()) == list(range(len(ids)))


def test_ids_beyond_float32_survive():
    """Neighbouring ids above 2^24, which float32 cannot tell apart, stay two spots."""
    first = 2**24 + 1
    label = np.array([[first, first + 1]])
    counts = csr_matrix((first + 1, 1), dtype=np.int32)
    source = PatchSource.from_arrays(np.zeros((1, 2, 3), np.uint8), label, np.ones((1, 2), bool), counts)
    sample = CenterPatchd([source], side=2)({Key.SECTION: 0, PatchKey.ROW: 1, PatchKey.COL: 1})
    assert sample[Key.LABEL].tolist() == [[[1.0, 2.0], [3.0, 3.0]]]
    assert sample[PatchKey.SPOT_IDS].tolist() == [first, first + 1, first + 2]


def test_centres_are_uniform_over_the_tissue():
    """Every tissue pixel is drawn equally often, to five standard errors, and no other pixel ever."""
    tissue = np.zeros((5, 4), bool)
    tissue[[0, 0, 2, 4], [0, 3, 1, 3]] = True
    image = np.repeat(np.arange(20, dtype=np.uint8).reshape(5, 4, 1), 3, axis=2)  # the colour is the flat index
    source = PatchSource.from_arrays(image, np.zeros((5, 4), int), tissue, csr_matrix((0, 3)))
    draw = RandTissuePatchd([source], side=1).set_random_state(seed=0)
    drawn = [round(float(draw({Key.SECTION: 0})[Key.IMAGE][0, 0, 0]) * 255) for _ in range(2000)]
    times = np.bincount(drawn, minlength=20)
    assert set(np.flatnonzero(times)) == set(np.flatnonzero(tissue))
    assert np.abs(times[tissue.ravel()] - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_the_section_is_the_one_asked_for(make_source):
    """Item {section: n} is cut from source n."""
    sources = [make_source(40, 30), make_source(40, 30, tissue="left")]
    draw = RandTissuePatchd(sources, side=400).set_random_state(seed=0)
    for section, source in enumerate(sources):
        sample = draw({Key.SECTION: section})
        assert sample[Key.SECTION] == section
        assert int(sample[PatchKey.SPOT_IDS][-1]) == source.outside
        assert int((sample[Key.LABEL] != len(sample[PatchKey.SPOT_IDS])).sum()) == int(
            (source.label != source.outside).sum()
        )


def test_a_section_without_tissue_cannot_be_trained_on(make_source):
    """The message names the sections that have no tissue pixel."""
    bare = PatchSource.from_arrays(
        np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), int), np.zeros((4, 4), bool), csr_matrix((0, 4))
    )
    with pytest.raises(ShapeError, match=r"needs tissue pixels, got none in section\(s\) \[1\]"):
        RandTissuePatchd([make_source(40, 30), bare], side=8)
