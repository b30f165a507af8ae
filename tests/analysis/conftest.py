"""Posterior maps, sections and runs that are small enough to compute by hand."""

from __future__ import annotations

import itertools
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
from superst_monai.inference.rates import Effects, RateSamples

SHAPE = (24, 36)
MPP = 10.0
MapsMaker = Callable[..., Path]
SectionMaker = Callable[..., Section]


def write_maps(
    path: Path,
    *,
    genes: tuple[str, ...] = ("A", "B", "C"),
    record: dict[str, Any] | None = None,
    n_samples: int = 3,
    tile_px: int = 64,
    tissue: NDArray[np.bool_] | None = None,
) -> Path:
    """Write posterior maps with random samples, which a float16 holds exactly."""
    rng = np.random.default_rng(5)
    n_metagenes, n_genes = 2, len(genes)
    samples = (rng.integers(1, 64, (n_samples, n_metagenes, *SHAPE)) / 256).astype(np.float32)
    if tissue is None:
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
        tile_px=tile_px,
        rates=rates,
        log_rate=(rates.log_rate.mean(0), rates.log_rate.std(0)),
        active=np.ones(n_metagenes, dtype=bool),
        genes=pd.DataFrame(
            {"gene_id": [f"ID-{g}" for g in genes], "logit": rates.logit.mean(0)},
            index=pd.Index(genes, name="gene"),
        ),
        record={"run": None, "source": "S", "slide": {"sha256": "same", "mpp_x": 10.0, "mpp_y": 10.0}} | (record or {}),
    )
    with new_maps(path, layout) as writer:
        for row, col in itertools.product(*(range(0, side, tile_px) for side in SHAPE)):
            inside = tissue[row : row + tile_px, col : col + tile_px]
            if inside.any():
                tile = samples[:, :, row : row + tile_px, col : col + tile_px] * inside
                writer.write(Window(row, col, *inside.shape), tile)
    return path


@pytest.fixture
def make_maps(tmp_path: Path) -> MapsMaker:
    """Write posterior maps, see `write_maps`, and say where."""
    return lambda **options: write_maps(tmp_path / f"maps-{len(list(tmp_path.iterdir()))}.zarr", **options)


@pytest.fixture(scope="session")
def tiled_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps in tiles of 8 pixels of 10 um, some without tissue; the slide has 5 um per level-0 pixel."""
    tissue = np.zeros(SHAPE, dtype=bool)
    tissue[2:, 3:15] = True
    tissue[18:, 3:] = True
    record = {"slide": {"mpp_x": 5.0, "mpp_y": 5.0}}
    return write_maps(tmp_path_factory.mktemp("tiled") / "maps.zarr", tile_px=8, tissue=tissue, record=record)


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


@pytest.fixture(scope="session")
def store_maps(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Store given samples `(N, K, H, W)` and log rates as posterior maps in tiles of 16 pixels, and say where."""

    def store(
        samples: NDArray[np.floating],
        log_rate: NDArray[np.floating],
        *,
        logit: NDArray[np.floating] | None = None,
        tissue: NDArray[np.bool_] | None = None,
        effects: Effects | None = None,
        name: str = "S",
        **record: Any,
    ) -> Path:
        n_samples, n_metagenes, *shape = samples.shape
        n_genes = log_rate.shape[-1]
        rates = RateSamples(
            np.broadcast_to(log_rate, (n_samples, n_metagenes, n_genes)).astype(np.float32),
            np.zeros((n_samples, n_genes), np.float32) if logit is None else logit.astype(np.float32),
            {},
            effects,
        )
        names = [f"g{i}" for i in range(n_genes)]
        known = {"run": None, "run_sha256": "w", "seed": 0, "source": name, "conditions": {}, "drawn_conditions": {}}
        layout = MapsLayout(
            mpp=MPP,
            tissue=np.ones(shape, bool) if tissue is None else tissue,
            tile_px=16,
            rates=rates,
            log_rate=(rates.log_rate.mean(0), rates.log_rate.std(0)),
            active=np.ones(n_metagenes, dtype=bool),
            genes=pd.DataFrame(
                {"gene_id": [f"ID-{g}" for g in names], "logit": rates.logit.mean(0)},
                index=pd.Index(names, name="gene"),
            ),
            record=known | {"slide": {"mpp_x": MPP, "mpp_y": MPP}} | record,
        )
        path = tmp_path_factory.mktemp("stored") / f"{name}.maps.zarr"
        with new_maps(path, layout) as writer:
            for row, col in itertools.product(*(range(0, side, 16) for side in shape)):
                inside = layout.tissue[row : row + 16, col : col + 16]
                part = samples[:, :, row : row + 16, col : col + 16] * inside
                if part.any():
                    writer.write(Window(row, col, *inside.shape), part.astype(np.float32))
        return path

    return store
