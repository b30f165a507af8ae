"""A loader that cuts the next batch while the network works on this one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader


class AheadLoader(DataLoader[Any]):
    """torch's `DataLoader`, one batch ahead in a thread of its own; the batches are the same.

    A thread and no process: it needs no copy of the sections, and what goes wrong in a patch is raised where the batch
    is asked for (MONAI's `ThreadDataLoader` ends the epoch there without a word). Nothing of the next epoch is drawn
    before it begins.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of one pass."""
        batches = super().__iter__()
        with ThreadPoolExecutor(1, "loader") as thread:
            ahead = thread.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = thread.submit(next, batches, None)
                yield batch
