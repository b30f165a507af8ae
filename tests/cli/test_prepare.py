"""`superst prepare` and `superst inspect`: from files to a checked section, or a refusal that leaves nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.io

from superst_monai.cli import inspection
from superst_monai.cli.prepare import open_image
from superst_monai.data.store import read_section
from superst_monai.data.synthetic import SyntheticTissue, to_assay
from superst_monai.errors import ResolutionError

Runner = Callable[..., Any]


@pytest.fixture(scope="module")
def h5ad(tissue: SyntheticTissue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The counts as an AnnData file."""
    path = tmp_path_factory.mktemp("h5ad") / "a.h5ad"
    where = tissue.spots[["x_px0", "y_px0"]].to_numpy()
    anndata.AnnData(
        tissue.counts.astype(np.float32),
        obs=tissue.spots[["array_row"]],
        var=tissue.genes[["gene_id"]],
        obsm={"spatial": where},
    ).write_h5ad(path)
    return path


def prepare_h5ad(run: Runner, h5ad: Path, slide: Path, out: Path, *more: str) -> Any:
    """Run `prepare h5ad` on the synthetic tissue."""
    given = ("--image", slide, "--image-scale", 1, "--spot-diameter-um", 60, "--out", out)
    return run("prepare", "h5ad", h5ad, *given, *more)


def test_an_h5ad_becomes_a_section(
    run: Runner, h5ad: Path, slide: Path, tissue: SyntheticTissue, tmp_path: Path
) -> None:
    """Counts, columns and name arrive; notes and checks are printed; the overlay lies beside the store."""
    out = tmp_path / "A1.zarr"
    done = prepare_h5ad(run, h5ad, slide, out, "--set", "patient=P1", "--mpp", "5", "--slide-mpp", "1")
    assert done.exit_code == 0, done.output
    section = read_section(out)
    assert (section.name, section.mpp) == ("A1", 5.0)
    assert set(section.spots["section"]) == {"A1"}
    assert set(section.spots["patient"]) == {"P1"}
    np.testing.assert_array_equal(section.counts.toarray(), tissue.counts.toarray())
    assert "Preflight of A1" in done.stdout
    assert "\n- " in f"\n{done.stdout}"
    assert (tmp_path / "A1.png").stat().st_size > 0


def test_inspect_shows_a_section_again(run: Runner, slide: Path, tmp_path: Path) -> None:
    """The stored checks are printed again and the overlay is drawn where asked, or beside the store."""
    out = tmp_path / "B.zarr"
    assert run("prepare", "slide", slide, "--out", out, "--name", "B7").exit_code == 0
    (tmp_path / "B.png").unlink()
    done = run("inspect", out)
    assert done.exit_code == 0, done.output
    assert "Section B7" in done.stdout
    assert "Preflight of B7" in done.stdout
    assert (tmp_path / "B.png").is_file()
    assert run("inspect", out, "--out", tmp_path / "other.png").exit_code == 0
    assert (tmp_path / "other.png").is_file()


def test_inspect_says_where_it_cannot_write(
    run: Runner, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only folder is named with the option that helps."""
    out = tmp_path / "B.zarr"
    run("prepare", "slide", slide, "--out", out)
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    done = run("inspect", out)
    assert done.exit_code == 2
    assert f"the overlay {tmp_path / 'B.png'} cannot be written" in done.stderr
    assert "pass --out" in done.stderr


def test_st_tables_become_a_section(run: Runner, slide: Path, tissue: SyntheticTissue, tmp_path: Path) -> None:
    """A counts table and a matrix give the spots; diameter and pitch can be told."""
    counts = pd.DataFrame(np.arange(1, 13).reshape(4, 3), index=["2x2", "3x2", "2x3", "3x3"], columns=["A", "B", "C"])
    counts.to_csv(tmp_path / "c.tsv", sep="\t")
    (tmp_path / "m.txt").write_text("200 0 0 0 200 0 -200 -200 1")
    done = run(
        *("prepare", "st", "--counts", tmp_path / "c.tsv", "--image", slide, "--transform", tmp_path / "m.txt"),
        *("--pitch-um", 180, "--spot-diameter-um", 95, "--out", tmp_path / "C2.zarr"),
    )
    assert done.exit_code == 0, done.output
    section = read_section(tmp_path / "C2.zarr")
    np.testing.assert_allclose(section.spots["x_um"], [200, 400, 200, 400])
    np.testing.assert_allclose(section.spots["radius_um"], 47.5 / 0.9)


def test_visium_becomes_a_section(run: Runner, slide: Path, tissue: SyntheticTissue, tmp_path: Path) -> None:
    """A Space Ranger folder with a slide gives a section; without --image the folder's own image is missed."""
    outs = tmp_path / "outs"
    matrix = outs / "filtered_feature_bc_matrix"
    matrix.mkdir(parents=True)
    (outs / "spatial").mkdir()
    scipy.io.mmwrite(matrix / "matrix.mtx", tissue.counts.T.astype(int))
    (matrix / "barcodes.tsv").write_text("\n".join(tissue.spots.index) + "\n")
    features = [f"{row.gene_id}\t{name}\tGene Expression" for name, row in tissue.genes.iterrows()]
    (matrix / "features.tsv").write_text("\n".join(features) + "\n")
    columns = ["array_row", "array_col", "y_px0", "x_px0"]
    positions = tissue.spots[columns].set_axis(
        ["array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"], axis=1
    )
    positions.insert(0, "in_tissue", 1)
    positions.to_csv(outs / "spatial" / "tissue_positions.csv")
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps({"spot_diameter_fullres": 60.0}))
    done = run("prepare", "visium", outs, "--image", slide, "--out", tmp_path / "V.zarr")
    assert done.exit_code == 0, done.output
    section = read_section(tmp_path / "V.zarr")
    np.testing.assert_array_equal(section.counts.toarray(), tissue.counts.toarray())
    missed = run("prepare", "visium", outs, "--out", tmp_path / "W.zarr")
    assert missed.exit_code == 2
    assert "no image" in missed.stderr


def test_a_fault_writes_nothing(run: Runner, h5ad: Path, slide: Path, tmp_path: Path) -> None:
    """Coordinates of another frame end with code 2, the table printed, and an empty folder."""
    given = ("--image", slide, "--image-scale", 4, "--spot-diameter-um", 60, "--out", tmp_path / "A.zarr")
    done = run("prepare", "h5ad", h5ad, *given, "--slide-mpp", 1)
    assert done.exit_code == 2
    assert "lie off the slide" in done.stderr
    assert "Preflight of A" in done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_names_are_refused_before_reading(run: Runner, h5ad: Path, slide: Path, tmp_path: Path) -> None:
    """A taken or odd name of the store, a bad --set and a missing file end with code 2, naming the culprit."""
    (tmp_path / "A.zarr").mkdir()
    assert "must not exist yet" in prepare_h5ad(run, h5ad, slide, tmp_path / "A.zarr").stderr
    assert "must end in .zarr" in prepare_h5ad(run, h5ad, slide, tmp_path / "A").stderr
    odd = prepare_h5ad(run, h5ad, slide, tmp_path / "B.zarr", "--slide-mpp", "1", "--set", "patient")
    assert (odd.exit_code, "'patient' is none" in odd.stderr) == (2, True)
    gone = run("prepare", "slide", tmp_path / "gone.svs", "--out", tmp_path / "B.zarr")
    assert gone.exit_code == 2
    assert str(tmp_path / "gone.svs") in gone.stderr
    assert gone.stderr.count("\n") == 1


def test_an_image_in_memory_needs_a_resolution(tissue: SyntheticTissue) -> None:
    """Pixels without mpp are refused; the user's number wins over the assay's."""
    assay = to_assay(tissue)
    assert open_image(assay, None, "A").mpp_x == 1.0
    assert open_image(assay, 2.0, "A").mpp_x == 2.0
    object.__setattr__(assay, "mpp", None)
    with pytest.raises(ResolutionError, match=r"the image of A must come with its resolution.*pass --slide-mpp"):
        open_image(assay, None, "A")


def test_inspect_refuses_what_is_no_store(run: Runner, tmp_path: Path) -> None:
    """A missing path, a plain folder, a foreign and a damaged store each end with code 2."""
    import zarr

    assert "there is no" in run("inspect", tmp_path / "gone.zarr").stderr
    (tmp_path / "plain").mkdir()
    assert "but it is none" in run("inspect", tmp_path / "plain").stderr
    zarr.create_group(tmp_path / "foreign.zarr")
    assert "but it is none" in run("inspect", tmp_path / "foreign.zarr").stderr
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    done = run("inspect", tmp_path / "broken.zarr")
    assert done.exit_code == 2
    assert "is damaged" in done.stderr


def test_inspect_summarises_maps(
    run: Runner, stand_in: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of maps the size, the samples and the record are printed; an overlay is refused."""

    class Maps:
        genes = ("A", "B")
        n_samples = 3
        shape = (100, 200)
        mpp = 5.0

        def __init__(self) -> None:
            self.record = {
                "run": "/runs/r",
                "seed": 7,
                "none": None,
                "empty": {},
                "slide": {"file": "a.svs", "x": None},
            }

    stand_in("superst_monai.inference.maps", open_maps=lambda path: Maps())
    monkeypatch.setattr(inspection, "store_meta", lambda path: {"kind": "maps"})
    (tmp_path / "M.zarr").mkdir()
    done = run("inspect", tmp_path / "M.zarr")
    assert done.exit_code == 0, done.output
    for text in ("Posterior maps M.zarr", "200 x 100 px of 5 um", "1 x 0.5 mm", "/runs/r", "7", "file a.svs"):
        assert text in done.stdout
    assert "empty" not in done.stdout
    assert "superst maps" in run("inspect", tmp_path / "M.zarr", "--out", "x.png").stderr
