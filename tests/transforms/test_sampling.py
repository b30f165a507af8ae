"""Items are shared out by tissue area and are pure functions of seed, epoch and index."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from monai.utils import set_determinism
from torch.utils.data import DataLoader

from superst_monai.errors import RunError, ShapeError
from superst_monai.transforms.collate import collate_patches
from superst_monai.transforms.patches import training_chain
from superst_monai.transforms.sampling import PatchDataset, share_items
from superst_monai.types import Key

SIZE = 32


@pytest.fixture
def dataset(make_source) -> PatchDataset:
    """Six items of two sections, all augmentation on."""
    chain = training_chain([make_source(), make_source(tissue="left")], size=SIZE, occlusion_prob=0.5)
    return PatchDataset(chain, [0, 1, 0, 0, 1, 0], seed=7)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two samples or batches agree to the bit in every entry."""
    return one.keys() == other.keys() and all(
        torch.equal(*(torch.as_tensor(each[key]).to_dense() for each in (one, other))) for key in one
    )


@pytest.mark.parametrize(
    ("areas", "n_items", "expected"),
    [
        ([1, 1], 4, [2, 2]),
        ([3, 1], 8, [6, 2]),
        ([41, 23, 19, 9, 8], 10, [4, 2, 2, 1, 1]),  # quotas 4.1, 2.3, 1.9, 0.9, 0.8
        ([1, 1, 1], 4, [2, 1, 1]),
        ([5, 0], 3, [3, 0]),
        ([2.5], 0, [0]),
    ],
)
def test_sections_get_their_share(areas: list[float], n_items: int, expected: list[int]):
    """Largest remainder shares out every item, ties to the earlier section."""
    section = share_items(areas, n_items)
    assert section.dtype == np.int64
    assert np.bincount(section, minlength=len(areas)).tolist() == expected


def test_sections_are_interleaved():
    """Any run of consecutive items holds each section to its share, to two items."""
    section = share_items([60, 30, 10], 200)
    for start in range(0, 200, 20):
        times = np.bincount(section[start : start + 20], minlength=3)
        assert np.abs(times - [12, 6, 2]).max() <= 2


@pytest.mark.parametrize("areas", [[0, 0], [1, -1], [np.nan, 1], [], [[1, 2]]])
def test_areas_that_share_out_nothing_are_refused(areas: list[Any]):
    """Areas are finite, not negative and not all zero."""
    with pytest.raises(ShapeError, match="finite, not negative and not all zero"):
        share_items(areas, 4)


def test_an_item_depends_on_nothing_but_seed_epoch_and_index(dataset: PatchDataset):
    """Order of access, earlier epochs and the global random state do not matter, to the bit."""
    dataset.set_epoch(3)
    forward = [dataset[index] for index in range(len(dataset))]
    dataset.set_epoch(0)
    dataset[5]
    set_determinism(seed=99)
    try:
        again = PatchDataset(dataset.chain, dataset.sections_of_items, seed=7)
        again.set_epoch(3)
        backward = [again[index] for index in reversed(range(len(again)))][::-1]
    finally:
        set_determinism(seed=None)
    assert again.epoch == 3
    assert all(same(one, other) for one, other in zip(forward, backward, strict=True))
    assert [one[Key.SECTION] for one in forward] == [0, 1, 0, 0, 1, 0]


def test_every_epoch_index_and_seed_has_patches_of_its_own(dataset: PatchDataset):
    """Changing any one of epoch, index or seed changes the image."""
    first = dataset[0]
    other_index, other_seed = dataset[2], PatchDataset(dataset.chain, dataset.sections_of_items, seed=8)[0]
    dataset.set_epoch(1)
    for other in (other_index, other_seed, dataset[0]):
        assert not torch.equal(first[Key.IMAGE], other[Key.IMAGE])


def test_threads_that_ask_at_the_same_time_get_their_own_patches(dataset: PatchDataset):
    """Patches of two epochs, drawn by four threads, are those drawn one by one; the dataset's epoch stays."""
    asked = [(i, epoch) for epoch in (0, 3) for i in range(6)] * 2
    expected = [dataset.patch(*which) for which in asked]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda which: dataset.patch(*which), asked))
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert dataset.epoch == 0
    dataset.set_epoch(3)
    assert same(dataset[1], dataset.patch(1, 3))


def test_a_dataset_that_is_sent_to_another_process_draws_the_same(dataset: PatchDataset):
    """Its lock stays behind."""
    dataset.set_epoch(2)
    assert same(pickle.loads(ForkingPickler.dumps(dataset))[4], dataset[4])


def test_workers_change_nothing(dataset: PatchDataset):
    """Persistent workers deliver the same batches as none, in the second epoch too."""
    here = DataLoader(dataset, batch_size=3, collate_fn=collate_patches)
    there = DataLoader(dataset, batch_size=3, collate_fn=collate_patches, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append(list(there))
        assert all(same(one, other) for one, other in zip(here, epochs[-1], strict=True))
    assert not same(epochs[0][0], epochs[1][0])


@pytest.mark.parametrize("index", [-1, 6])
def test_the_epoch_ends_where_it_says(dataset: PatchDataset, index: int):
    """There are items 0 ... N - 1 and no others, so that iteration ends."""
    assert len(dataset) == 6
    with pytest.raises(IndexError, match=f"patch {index} of an epoch of 6 patches"):
        dataset[index]


def test_negative_seeds_are_refused(dataset: PatchDataset):
    """A seed sequence takes no negative numbers, and says so at construction."""
    with pytest.raises(RunError, match="must not be negative, got -1"):
        PatchDataset(dataset.chain, [0], seed=-1)
