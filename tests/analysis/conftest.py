"""Posterior maps, sections and runs that are small enough to compute by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.inference.maps_store import MapsLayout, new_maps
from superst_monai.inference.posterior import Window
from superst_monai.inference.rates import RateSamples

SHAPE = (24, 36)
MPP = 10.0
MapsMaker = Callable[..., Path]
SectionMaker = Callable[..., Section]


@pytest.fixture
def make_maps(tmp_path: Path) -> MapsMaker:
    """Write posterior maps with random samples, which a float16 holds exactly, and say where."""

    def make(
        *, genes: tuple[str, ...] = ("A", "B", "C"), record: dict[str, Any] | None = None, n_samples: int = 3
    ) -> Path:
        rng = np.random.default_rng(5)
        n_metagenes, n_genes = 2, len(genes)
        samples = (rng.integers(1, 64, (n_samples, n_metagenes, *SHAPE)) / 256).astype(np.float32)
        tissue = np.zeros(SHAPE, dtype=bool)
        tissue[2:-2, 3:-3] = True
        rates = RateSamples(
            rng.normal(0, 0.5, (n_samples, n_metagenes, n_genes)).astype(np.float32),
            rng.normal(-0.5, 0.2, (n_samples, n_genes)).astype(np.float32),
            {},
        )
        layout = MapsLayout(
            mpp=MPP,
            tissue=tissue,
            tile_px=64,
            rates=rates,
            log_rate=(rates.log_rate.mean(0), rates.log_rate.std(0)),
            active=np.ones(n_metagenes, dtype=bool),
            genes=pd.DataFrame(
                {"gene_id": [f"ID-{g}" for g in genes], "logit": rates.logit.mean(0)},
                index=pd.Index(genes, name="gene"),
            ),
            record={"run": None, "source": "S", "slide": {"sha256": "same", "mpp_x": 10.0, "mpp_y": 10.0}}
            | (record or {}),
        )
        path = tmp_path / f"maps-{len(list(tmp_path.iterdir()))}.zarr"
        with new_maps(path, layout) as writer:
            writer.write(Window(0, 0, *SHAPE), samples * tissue)
        return path

    return make


@pytest.fixture
def make_section() -> SectionMaker:
    """Make a section on the maps' grid: six spots of 30 um radius, random image and counts."""

    def make(
        *,
        name: str = "S",
        genes: tuple[str, ...] = ("A", "B", "C"),
        mpp: float = MPP,
        shape: tuple[int, int] = SHAPE,
        sha256: str = "same",
        seed: int = 0,
        x_um: NDArray[np.float64] | None = None,
    ) -> Section:
        rng = np.random.default_rng(seed)
        place = np.array([[80, 60], [180, 60], [280, 60], [80, 170], [180, 170], [280, 170]], dtype=float)
        spots = pd.DataFrame(
            {"x_um": place[:, 0] if x_um is None else x_um, "y_um": place[:, 1], "radius_um": 30.0, "section": name},
            index=pd.Index([f"spot{i}" for i in range(6)], name="barcode"),
        )
        return Section(
            name=name,
            mpp=mpp,
            image=rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
            tissue=np.ones(shape, dtype=bool),
            counts=sparse.csr_matrix(rng.poisson(4.0, (6, len(genes))).astype(np.int32)),
            spots=spots,
            genes=pd.DataFrame({"gene_id": [f"ID-{g}" for g in genes]}, index=pd.Index(genes, name="gene")),
            slide={
                "mpp_x": mpp,
                "mpp_y": mpp,
                "width_px0": shape[1],
                "height_px0": shape[0],
                "sha256": sha256,
                "mpp_source": "caller",
            },
            platform="st",
        )

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Store sections, and write the record of a run that was trained on them."""

    def make(*sections: Section) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        entries = []
        for section in sections:
            path = tmp_path / f"{section.name}.zarr"
            write_section(section, path)
            entries.append({"name": section.name, "path": str(path), "slide": section.slide["sha256"]})
        (run / "run.json").write_text(json.dumps({"sections": entries}))
        return run

    return make


@pytest.fixture
def opened(make_maps: MapsMaker) -> Maps:
    """Posterior maps, opened."""
    return open_maps(make_maps())
