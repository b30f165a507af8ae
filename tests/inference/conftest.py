"""Sections and run folders small enough to predict in a blink; the networks have random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.sparse import csr_matrix

from superst_monai.data.section import Section
from superst_monai.data.slide import Slide
from superst_monai.data.synthetic import make_tissue, write_slide
from superst_monai.engines.run_folder import bundle_folder
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import predict
from superst_monai.model.objective import FusionVAE

GENES = ("ACTB", "Gfap", "Mbp", "Snap25", "Plp1", "KRT8", "Krt18")
MakeRun = Callable[..., Path]


def random_network(covariates: Mapping[str, Sequence[str]], **sizes: Any) -> FusionVAE:
    """A network none of whose parameters and statistics is at its neutral first value."""
    torch.manual_seed(0)
    network = FusionVAE(covariates=covariates, **sizes)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)  # so that noise is heard through all layers
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        globals_ = (network.guide.profile, *network.guide.rate_effect.values(), *network.guide.logit_effect.values())
        for normal in globals_:
            normal.mean.normal_(0, 0.7)
            normal.log_sd.fill_(np.log(0.1))
        network.generative.log_rate.normal_(0, 1)
        network.generative.logit.normal_(-0.5, 0.5)
    return network.eval()


def write_run(
    path: Path,
    *,
    depth: int = 3,
    width: int = 4,
    n_metagenes: int = 4,
    mpp: float = 4.0,
    genes: Sequence[str] = GENES,
    covariates: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Path:
    """Write what training leaves behind: the bundle's configurations filled in, weights, genes and record."""
    shutil.copytree(bundle_folder(), path)
    numbers = {"n_genes": len(genes), "n_sections": 2, "n_metagenes": n_metagenes, "depth": depth, "width": width}
    numbers |= {"covariates": {c: list(levels) for c, levels in (covariates or {}).items()}, "mpp": mpp}
    for name in ("inference.yaml", "evaluate.yaml"):
        config = yaml.safe_load((path / "configs" / name).read_text())
        config |= {key: value for key, value in numbers.items() if key in config}
        (path / "configs" / name).write_text(yaml.safe_dump(config, sort_keys=False))
    sizes = {key: value for key, value in numbers.items() if key not in {"covariates", "mpp"}}
    (path / "models").mkdir()
    torch.save(random_network(covariates or {}, **sizes).state_dict(), path / "models" / "model.pt")
    table = pd.DataFrame({"gene_id": [f"ENSG{i:05d}" for i in range(len(genes))]}, index=pd.Index(genes, name="gene"))
    table.to_csv(path / "genes.csv")
    columns = columns if columns is not None else {c: c for c in covariates or {}}
    (path / "run.json").write_text(json.dumps({"state": "done", "mpp": mpp, "covariate_columns": dict(columns)}))
    return path


def random_section(
    *, height: int = 150, width: int = 210, mpp: float = 4.0, genes: Sequence[str] = GENES, name: str = "C2"
) -> Section:
    """A round piece of stained tissue off the centre, so that some tiles are empty, with a grid of spots on it."""
    rng = np.random.default_rng(3)
    row, col = np.mgrid[:height, :width]
    tissue = (row - 60) ** 2 + (col - 70) ** 2 < 50**2
    stain = np.array([150, 80, 140]) + rng.integers(-40, 40, (height, width, 3))
    image = np.where(tissue[..., None], stain, 244).astype(np.uint8)
    y, x = (axis.ravel() for axis in np.mgrid[25:100:12, 30:118:12])
    spots = pd.DataFrame({"x_um": x * mpp, "y_um": y * mpp, "radius_um": 4.0 * mpp, "section": name, "patient": "p1"})
    spots.index = pd.Index([f"spot{i}" for i in range(len(spots))], name="barcode")
    counts = csr_matrix(rng.poisson(2.0, (len(spots), len(genes))).astype(np.int32))
    table = pd.DataFrame({"gene_id": [f"ID{i}" for i in range(len(genes))]}, index=pd.Index(genes, name="gene"))
    slide = {"mpp_x": mpp / 8, "mpp_y": mpp / 4, "width_px0": width * 8, "height_px0": height * 4, "sha256": "0"}
    return Section(name, mpp, image, tissue, counts, spots, table, slide, platform="visium")


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """Writes a run folder; see `write_run`."""
    return write_run


@pytest.fixture(scope="session")
def make_section() -> Callable[..., Section]:
    """Makes a section; see `random_section`."""
    return random_section


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of depth 3 with one covariate."""
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "run", covariates={"section": ["C2", "C6"]}))


@pytest.fixture(scope="session")
def section() -> Section:
    """The section of the run's level C2."""
    return random_section()


@pytest.fixture(scope="session")
def maps_path(run: Run, section: Section, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posterior maps of the section, in tiles of 64 pixels."""
    return predict(run, section, tmp_path_factory.mktemp("maps") / "C2.zarr", samples=4, tile_px=64)


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five small slides, and `bad`, a file of the same kind that was cut."""
    folder = tmp_path_factory.mktemp("slides")
    paths = {name: folder / f"{name}.tif" for name in (*"ABCDE", "bad")}
    for seed, name in enumerate("ABCDE"):
        write_slide(make_tissue(seed=seed, size_px=400, n_genes=12), paths[name])
    paths["bad"].write_bytes(paths["A"].read_bytes()[:400])
    return paths


@pytest.fixture(scope="session")
def single(run: Run, slides: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Posterior maps of the five slides, each predicted on its own with two samples."""
    folder, found = tmp_path_factory.mktemp("single"), {}
    for name in "ABCDE":
        with Slide.open(slides[name]) as slide:
            found[name] = predict(run, slide, folder / f"{name}.zarr", samples=2, source_path=slides[name])
    return found
