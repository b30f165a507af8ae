"""The loader that is one batch ahead gives what torch's gives, when it is asked for, and its errors too."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from superst_monai.engines.loader import AheadLoader


class Numbers(Dataset[Any]):
    """Item i is i; notes which were drawn, and in which thread."""

    def __init__(self, n: int, *, wrong: int = -1) -> None:
        self.n, self.wrong = n, wrong
        self.drawn: list[int] = []
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        if i == self.wrong:
            raise RuntimeError(f"patch {i} is damaged")
        self.drawn.append(i)
        self.threads.add(threading.get_ident())
        return i


def test_batches_are_those_of_torch_pass_after_pass():
    """Two passes, a last batch that is not full, a shuffle by torch's generator: the same batches and random state."""
    given = {"batch_size": 3, "shuffle": True}
    found = []
    for kind in (DataLoader, AheadLoader):
        torch.manual_seed(4)
        loader = kind(Numbers(8), **given)
        found.append([[batch.tolist() for batch in loader] for _ in range(2)] + [torch.rand(2).tolist()])
    assert found[0] == found[1]
    assert len(AheadLoader(Numbers(8), batch_size=3)) == 3


def test_it_is_one_batch_ahead_in_another_thread_and_no_farther():
    """While batch i is in hand, batch i + 1 is drawn at most; nothing of the next pass is."""
    numbers = Numbers(8)
    loader = AheadLoader(numbers, batch_size=2)
    for i, _ in enumerate(loader):
        assert max(numbers.drawn) < 2 * (i + 2)
    assert numbers.drawn == list(range(8))
    assert threading.get_ident() not in numbers.threads


def test_an_error_of_a_patch_is_raised_where_its_batch_is_asked_for():
    """The batches before come, then the error of the item itself."""
    loader, seen = AheadLoader(Numbers(8, wrong=5), batch_size=2), []
    with pytest.raises(RuntimeError, match="patch 5 is damaged"):  # noqa: PT012
        for batch in loader:
            seen.append(batch.tolist())
    assert seen == [[0, 1], [2, 3]]


def test_a_pass_that_is_broken_off_leaves_no_thread():
    """After a break the thread has ended, and another pass begins at the first batch."""
    loader = AheadLoader(Numbers(8), batch_size=2)
    passes = iter(loader)
    next(passes)
    passes.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert next(iter(loader)).tolist() == [0, 1]
