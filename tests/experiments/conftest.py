"""Sections so small that a training takes a second, and what several tests of experiments share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.engines.workflow import train
from superst_monai.experiments.effort import Effort

MPP = 10.0
PATIENTS = {"A": "p1", "B": "p1", "C": "p2"}
OPTIONS = {
    "n_metagenes": 2,
    "depth": 3,
    "width": 4,
    "patch_px": 32,
    "batch_size": 2,
    "min_counts": 1,
    "default_steps": 10,
    "val_every_steps": 10,
}
MakeSection = Callable[..., Section]


def build_section(name: str = "A", *, seed: int = 0, columns: dict[str, str] | None = None) -> Section:
    """A section of 96 x 80 px of 10 um: two halves of tissue that differ in colour and genes, 30 spots, 12 genes."""
    rng = np.random.default_rng(seed)
    image = np.full((96, 80, 3), 240, np.uint8)
    image[8:88, 8:40] = (200, 120, 170)
    image[8:88, 40:72] = (120, 70, 150)
    image = np.clip(image + rng.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)
    tissue = np.zeros((96, 80), bool)
    tissue[8:88, 8:72] = True
    y, x = np.meshgrid(np.arange(15, 85, 12) * MPP, np.arange(15, 70, 12) * MPP, indexing="ij")
    spots = pd.DataFrame({"x_um": x.ravel(), "y_um": y.ravel(), "radius_um": 3.0 * MPP})
    spots.index = pd.Index([f"spot{i}" for i in range(len(spots))], name="barcode")
    left = (spots["x_um"] < 40 * MPP).to_numpy()[:, None]
    rate = np.where(left, [9.0, 1.0] * 6, [1.0, 9.0] * 6) * np.linspace(1, 3, 12)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(3.0, rate / 3.0)).astype(np.int32))
    names = pd.Index([f"G{i}" for i in range(12)], name="gene")
    genes = pd.DataFrame({"gene_id": [f"ENS{i}" for i in range(12)]}, index=names)
    slide = {"file": f"{name}.png", "sha256": hashlib.sha256(name.encode()).hexdigest(), "mpp_x": MPP, "mpp_y": MPP}
    slide |= {"mpp_source": "caller", "width_px0": 80, "height_px0": 96}
    spots = spots.assign(section=name, **(columns or {}))
    return Section(name, MPP, image, tissue, counts, spots, genes, slide, "st", "circle")


@pytest.fixture(scope="session")
def make_section() -> MakeSection:
    """Builds a section, see `build_section`."""
    return build_section


@pytest.fixture(scope="session")
def effort() -> Effort:
    """Ten steps of a tiny network, two samples, two repeats."""
    return Effort(samples=2, repeats=2, options=OPTIONS)


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sections A and B of patient p1 and C of patient p2, by name."""
    folder = tmp_path_factory.mktemp("sections")
    for seed, (name, patient) in enumerate(PATIENTS.items()):
        write_section(build_section(name, seed=seed, columns={"patient": patient}), folder / f"{name}.zarr")
    return {name: folder / f"{name}.zarr" for name in PATIENTS}


@pytest.fixture(scope="session")
def trained(stores: dict[str, Path], effort: Effort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on section A."""
    return train([stores["A"]], tmp_path_factory.mktemp("runs") / "run", seed=0, **effort.training)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every training and prediction from here on fail."""

    def refuse(*_: Any, **__: Any) -> Path:
        raise AssertionError("was computed again")

    monkeypatch.setattr("superst_monai.experiments.folder.train", refuse)
    monkeypatch.setattr("superst_monai.experiments.folder.predict", refuse)
