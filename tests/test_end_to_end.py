"""The whole way by the command line, on a tiny synthetic tissue: prepare, train, predict, evaluate, maps, inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from superst_monai.cli.app import app
from superst_monai.data.store import read_section
from superst_monai.data.synthetic import make_tissue, write_slide
from superst_monai.inference.maps import open_maps


def superst(*words: object) -> Any:
    """Run a command that must succeed."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command but the last ones has run."""
    folder = tmp_path_factory.mktemp("work")
    tissue = make_tissue(seed=1, size_px=600, n_genes=12)
    write_slide(tissue, folder / "slide.tif")
    anndata.AnnData(
        tissue.counts.astype(np.float32),
        obs=tissue.spots[["array_row"]],
        var=tissue.genes[["gene_id"]],
        obsm={"spatial": tissue.spots[["x_px0", "y_px0"]].to_numpy()},
    ).write_h5ad(folder / "counts.h5ad")
    given = ("--image", folder / "slide.tif", "--image-scale", 1, "--spot-diameter-um", 60, "--slide-mpp", 1)
    superst("prepare", "h5ad", folder / "counts.h5ad", *given, "--mpp", 6, "--out", folder / "A.zarr")
    small = ("--metagenes", 4, "--patch", 48, "--batch", 2, "--depth", 3, "--width", 4, "--min-counts", 1)
    superst(
        *("train", folder / "A.zarr", "--out", folder / "run", "--epochs", 2, "--mpp", 6, *small),
        *("--covariate", "section=section"),
    )
    superst("predict", folder / "run", folder / "A.zarr", "--out", folder / "maps.zarr", "--samples", 3)
    return folder


def test_evaluation_has_its_keys_and_says_that_it_was_trained_on(work: Path) -> None:
    """All promised keys are there, both baselines were fitted on the run's section, and the fit is called one."""
    done = superst("evaluate", work / "maps.zarr", "--truth", work / "A.zarr", "--out", work / "evaluation")
    result = json.loads((work / "evaluation" / "evaluation.json").read_text())
    assert result["n_spots"] == read_section(work / "A.zarr").n_spots
    for kind in ("raw", "lognorm"):
        for part in ("top100", "all"):
            assert {"median", "q25", "q75"} <= set(result[kind][part])
    assert {"depth", "r2", "nb_loglik_per_spot"} <= set(result)
    assert set(result["coverage"]) == {"50", "90"}
    assert result["trained_on_truth"] is True
    assert all(result["baselines"][name] is not None for name in ("gene_mean", "image_intensity"))
    assert "was in the training set" in done.stderr


def test_a_spot_is_the_sum_of_its_pixels(work: Path) -> None:
    """The predicted count of a spot is the sum of its pixels in the gene's map, and the table's total the tissue's."""
    superst("evaluate", work / "maps.zarr", "--truth", work / "A.zarr", "--out", work / "sums")
    superst("maps", work / "maps.zarr", "--genes", "circle-01,base-01", "--out", work / "figures")
    table = anndata.read_h5ad(work / "sums" / "predicted.h5ad")
    totals = pd.read_csv(work / "figures" / "GENES.csv", index_col="gene")["total"]
    maps, section = open_maps(work / "maps.zarr"), read_section(work / "A.zarr")
    label = maps.spot_label(section)
    for gene in ("circle-01", "base-01"):
        mean, _ = maps.gene(gene)
        summed = np.bincount(label.ravel(), weights=mean.ravel(), minlength=section.n_spots + 1)[1:]
        np.testing.assert_allclose(table[:, gene].X.ravel(), summed, rtol=1e-4)
        assert totals[gene] == pytest.approx(float(mean[maps.tissue].sum(dtype=np.float64)), rel=1e-5)
        assert (work / "figures" / f"{gene}.png").stat().st_size > 0


def test_stores_can_be_inspected(work: Path) -> None:
    """Section and maps are summarised."""
    assert "Preflight of A" in superst("inspect", work / "A.zarr", "--out", work / "again.png").stdout
    assert "12" in superst("inspect", work / "maps.zarr").stdout


def test_a_finished_run_is_not_overwritten(work: Path) -> None:
    """Training again into the same folder ends with code 2 and names the way out."""
    done = CliRunner().invoke(app, ["train", str(work / "A.zarr"), "--out", str(work / "run"), "--epochs", "1"])
    assert done.exit_code == 2
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trained_run_is_a_sound_bundle(work: Path) -> None:
    """What training leaves behind passes every offline check."""
    done = superst("bundle", "check", work / "run")
    assert "fault" not in done.stdout
    assert "verify_net_in_out passes" in done.stdout
