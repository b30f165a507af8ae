"""Sections with a known truth for the patch chains: the first gene and the colour of a spot spell its id."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from superst_monai.transforms.sources import PatchSource

MakeSource = Callable[..., PatchSource]


def _make_source(
    height: int = 240, width: int = 200, *, pitch: int = 20, radius: float = 7.0, n_genes: int = 4, tissue: str = "all"
) -> PatchSource:
    """Discs on a square grid that starts on the edge of the slide; id = counts of gene 0 = red + 128 * green."""
    row, col = np.mgrid[:height, :width]
    spot_row, spot_col = (row + pitch // 2) // pitch, (col + pitch // 2) // pitch
    covered = np.hypot(row - spot_row * pitch, col - spot_col * pitch) <= radius
    label = np.where(covered, spot_row * (spot_col.max() + 1) + spot_col + 1, 0)
    n_spots = int(label.max())
    mask = np.ones((height, width), dtype=bool)
    if tissue == "left":
        mask[:, width // 2 :] = False
    if tissue == "corner":
        mask[:] = False
        mask[:3, :3] = True
    label = np.where(~mask & (label == 0), n_spots + 1, label)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = label % 128, label // 128
    counts = np.arange(1, n_spots + 1)[:, None] * (np.arange(n_genes) + 1)
    return PatchSource.from_arrays(image, label, mask, csr_matrix(counts.astype(np.int32)))


@pytest.fixture(scope="session")
def make_source() -> MakeSource:
    """The builder of sections with a known truth."""
    return _make_source
