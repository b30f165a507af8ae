"""A small section whose expression follows its colours, shared by the tests of the engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from superst_monai.data.section import Section
from superst_monai.data.store import write_section

MakeSection = Callable[..., Section]


@pytest.fixture(scope="session")
def make_section() -> MakeSection:
    """Build a section of 96 x 80 px at 10 um: two tissue halves, 30 spots 60 um wide, 12 genes."""

    def make(name: str = "A", *, seed: int = 0, mpp: float = 10.0, columns: dict[str, str] | None = None) -> Section:
        rng = np.random.default_rng(seed)
        image = np.full((96, 80, 3), 240, np.uint8)
        image[8:88, 8:40] = (200, 120, 170)
        image[8:88, 40:72] = (120, 70, 150)
        image = np.clip(image + rng.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)
        tissue = np.zeros((96, 80), bool)
        tissue[8:88, 8:72] = True
        y, x = np.meshgrid(np.arange(15, 85, 12) * mpp, np.arange(15, 70, 12) * mpp, indexing="ij")
        spots = pd.DataFrame({"x_um": x.ravel(), "y_um": y.ravel(), "radius_um": 3.0 * mpp})
        spots.index = pd.Index([f"spot{i}" for i in range(len(spots))], name="barcode")
        spots = spots.assign(section=name, **(columns or {}))
        left = (spots["x_um"] < 40 * mpp).to_numpy()[:, None]
        rate = np.where(left, [9.0, 1.0] * 6, [1.0, 9.0] * 6) * np.linspace(1, 3, 12)
        counts = sparse.csr_matrix(rng.poisson(rng.gamma(3.0, rate / 3.0)).astype(np.int32))
        names = pd.Index([f"G{i}" for i in range(12)], name="gene")
        genes = pd.DataFrame({"gene_id": [f"ENS{i}" for i in range(12)]}, index=names)
        slide = {"file": f"{name}.png", "sha256": "0" * 64, "mpp_x": mpp, "mpp_y": mpp, "mpp_source": "caller"}
        slide |= {"width_px0": 80, "height_px0": 96}
        return Section(name, mpp, image, tissue, counts, spots, genes, slide, "st", "circle")

    return make


@pytest.fixture(scope="session")
def stores(make_section: MakeSection, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two such sections on disk."""
    folder = tmp_path_factory.mktemp("sections")
    for seed, name in enumerate("AB"):
        write_section(make_section(name, seed=seed), folder / f"{name}.zarr")
    return [folder / f"{name}.zarr" for name in "AB"]
