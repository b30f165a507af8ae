"""Maps side by side: names, and that they belong together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from superst_monai.analysis.several_maps import open_several, require_one_run, tissue_sizes
from superst_monai.errors import RunError

StoreMaps = Callable[..., Path]
SAMPLES = np.random.default_rng(0).integers(1, 64, (2, 3, 10, 12)) / 256


def test_names_are_stems_and_differ(store_maps: StoreMaps, tmp_path: Path) -> None:
    """`.maps.zarr` is left out, and equal stems are numbered."""
    path = store_maps(SAMPLES, np.zeros((3, 2)), name="B7")
    other = shutil.copytree(path, tmp_path / "B7.zarr")
    assert [one.name for one in open_several([path, other, path])] == ["B7", "B7_2", "B7_3"]


def test_all_that_differs_is_named(store_maps: StoreMaps) -> None:
    """Seed, run, genes and samples must agree, and every map that differs is reported."""
    first, same = (store_maps(SAMPLES, np.zeros((3, 2)), name=name) for name in "AB")
    require_one_run(open_several([first, same]))
    seed = store_maps(SAMPLES, np.zeros((3, 2)), name="C", seed=5)
    genes = store_maps(SAMPLES[:1], np.zeros((3, 4)), name="D")
    with pytest.raises(RunError, match="but C differs from A in seed; D differs from A in genes, number of samples; p"):
        require_one_run(open_several([first, seed, genes]))


def test_the_size_of_the_tissue_is_that_of_its_pixels(store_maps: StoreMaps) -> None:
    """Glass does not count; a slide on which nothing is expected is refused."""
    tissue = np.arange(12) < 7
    maps = open_several([store_maps(SAMPLES, np.zeros((3, 2)), tissue=np.tile(tissue, (10, 1)))])[0].maps
    np.testing.assert_allclose(tissue_sizes(maps), SAMPLES[..., :7].sum((2, 3)), rtol=1e-6)
    nothing = open_several([store_maps(SAMPLES * 0, np.zeros((3, 2)))])[0].maps
    with pytest.raises(RunError, match="maps of S must expect expression on the tissue, got none"):
        tissue_sizes(nothing)
