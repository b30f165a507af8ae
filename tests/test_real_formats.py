"""Real sections of every format, by the command line: what arrives is what the files hold, read here independently."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter
from typer.testing import CliRunner

from superst_monai.cli.app import app
from superst_monai.data.section import Section
from superst_monai.data.store import read_section

MOB = ["--spot-diameter-um", "100"]


def superst(*words: object, code: int = 0) -> Any:
    """Run a command that must end with a code, without a traceback."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


def prepared(folder: Path, *words: object) -> tuple[Section, str]:
    """Prepare a section; it, and what was said. Neither a warning nor a fault is in the preflight."""
    out = folder / "section.zarr"
    said = superst("prepare", *words, "--out", out).stdout
    assert re.search(r"│ (warn|fault) ", said) is None, said
    assert out.with_suffix(".png").stat().st_size > 10_000
    return read_section(out), said


@pytest.fixture(scope="module")
def breast(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Section, str]:
    """Visium, Space Ranger 2 layout with `.h5`; its hires picture is the full-resolution frame."""
    outs = shared_data / "visium_brca" / "outs"
    image = outs / "spatial" / "tissue_hires_image.png"
    return prepared(tmp_path_factory.mktemp("breast"), "visium", outs, "--image", image)


@pytest.fixture(scope="module")
def bulb(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Section, str]:
    """AnnData of an array of Spatial Transcriptomics, most of whose spots are not under tissue."""
    file, image = (shared_data / "mob" / name for name in ("MOB1.h5ad", "MOB1.jpg"))
    return prepared(tmp_path_factory.mktemp("bulb"), "h5ad", file, "--image", image, "--slide-mpp", 4.15, *MOB)


@pytest.fixture(scope="module")
def tumour(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Section, str]:
    """Tables of the ST pipeline with the picture that the spot table refers to."""
    files = {"--counts": "C3.tsv.gz", "--image": "C3.jpg", "--spots": "C3_selection.tsv"}
    words = [word for key, name in files.items() for word in (key, shared_data / "her2st" / name)]
    return prepared(tmp_path_factory.mktemp("tumour"), "st", *words)


def test_visium_arrives_whole(breast: tuple[Section, str], shared_data: Path) -> None:
    """Without any other option: 709 spots of 55 um, 18,085 genes, every UMI of the file, 1.6 um per pixel."""
    section, said = breast
    outs = shared_data / "visium_brca" / "outs"
    with h5py.File(outs / "filtered_feature_bc_matrix.h5") as file:
        total, barcodes = int(file["matrix/data"][()].sum()), file["matrix/barcodes"].asstr()[()]
        last = int(file["matrix/data"][file["matrix/indptr"][-2] :].sum())
    assert section.counts.shape == (709, 18085)
    assert int(section.counts.sum()) == total
    assert list(section.spots.index) == list(barcodes)
    assert int(section.counts[-1].sum()) == last
    assert (section.slide["mpp_x"], section.slide["mpp_source"]) == (1.6, "assay")
    np.testing.assert_allclose(2 * section.spots["radius_um"], 55.0)
    place = pd.read_csv(outs / "spatial" / "tissue_positions.csv", index_col="barcode").loc[barcodes]
    np.testing.assert_allclose(section.spots["x_um"], place["pxl_col_in_fullres"] * 1.6)
    np.testing.assert_allclose(section.spots["y_um"], place["pxl_row_in_fullres"] * 1.6)
    assert 0.9 < section.tissue.mean() <= 1
    assert "48 of 18085 genes have no count" in said


def test_a_low_resolution_picture_is_taken_at_its_own(shared_data: Path, tmp_path: Path) -> None:
    """With the default the user is told which --mpp the picture allows; with that, all of the mtx folder arrives."""
    outs = shared_data / "visium_formats" / "cytassist_mtx"
    said = superst("prepare", "visium", outs, "--out", tmp_path / "section.zarr", code=2).stderr
    assert "slide tissue_lowres_image has 23.33 um per pixel, a section cannot be finer, got mpp=4" in said
    assert list(tmp_path.iterdir()) == []
    [advised] = re.findall(r"pass --mpp ([\d.]+) \(CLI\)", said)
    section, _ = prepared(tmp_path, "visium", outs, "--mpp", advised)
    with gzip.open(outs / "filtered_feature_bc_matrix" / "matrix.mtx.gz") as file:
        table = pd.read_csv(file, sep=r"\s+", comment="%", header=None).to_numpy()
    assert section.counts.shape == (table[0, 1], table[0, 0]) == (2898, 19465)
    assert int(section.counts.sum()) == table[1:, 2].sum()
    assert section.mpp == 23.4
    assert section.genes.index.is_unique
    assert 0.2 < section.tissue.mean() < 0.5


def test_positions_without_header_are_read(shared_data: Path, tmp_path: Path) -> None:
    """The folder of Space Ranger 1 is refused for its counts alone; with some it is a section on its hires picture."""
    spatial = shared_data / "visium_formats" / "v1_positions"
    said = superst("prepare", "visium", spatial, "--out", tmp_path / "section.zarr", code=2).stderr
    assert "no counts: filtered_feature_bc_matrix.h5 or filtered_feature_bc_matrix/ (or raw_...) is missing" in said
    assert "no positions" not in said
    positions = pd.read_csv(spatial / "tissue_positions_list.csv", header=None, index_col=0)
    under = positions[positions[1] == 1]
    (tmp_path / "outs").mkdir()
    (tmp_path / "outs" / "spatial").symlink_to(spatial)
    with h5py.File(tmp_path / "outs" / "filtered_feature_bc_matrix.h5", "w") as file:
        group, n = file.create_group("matrix"), len(under)
        group["barcodes"] = under.index.to_numpy(dtype="S")
        group["data"], group["indices"], group["indptr"] = np.arange(1, n + 1), np.zeros(n, int), np.arange(n + 1)
        group["shape"], group["features/id"], group["features/name"] = [1, n], [b"ENSG1"], [b"ACTB"]
        group["features/feature_type"] = [b"Gene Expression"]
    section, _ = prepared(tmp_path, "visium", tmp_path / "outs")
    assert section.n_spots == n
    factors = json.loads((spatial / "scalefactors_json.json").read_text())
    step_px = np.hypot(*(positions.loc[positions[3].isin([0, 2]) & (positions[2] == 0), [4, 5]].diff().iloc[1]))
    mpp = 100 / step_px / factors["tissue_hires_scalef"]  # neighbours in a row of a Visium array are 100 um apart
    assert section.slide["mpp_x"] == pytest.approx(mpp, rel=0.01)
    np.testing.assert_allclose(
        section.spots["x_um"], under[5] * factors["tissue_hires_scalef"] * section.slide["mpp_x"]
    )
    assert 0.1 < section.tissue.mean() < 0.95


def test_anndata_arrives_under_tissue(bulb: tuple[Section, str], shared_data: Path) -> None:
    """Of 1923 spots the 379 under tissue are kept with their counts, 100 um wide, where the file says."""
    section, said = bulb
    data = anndata.read_h5ad(shared_data / "mob" / "MOB1.h5ad")
    inside = data[data.obs["in_tissue"].astype(str).isin(["1", "True"])]
    assert (data.n_obs, inside.n_obs) == (1923, 379)
    assert "1544 of 1923 spots are not under tissue (in_tissue) and were left out" in said
    assert list(section.spots.index) == list(inside.obs_names)
    assert section.counts.shape == (379, 1000)
    assert int(section.counts.sum()) == int(inside.X.sum())
    np.testing.assert_allclose(section.spots[["x_um", "y_um"]], np.asarray(inside.obsm["spatial"]) * 4.15)
    np.testing.assert_allclose(2 * section.spots["radius_um"], 100.0)
    assert 0.08 < section.tissue.mean() < 0.14


@pytest.mark.parametrize(("given", "asked"), [(MOB, "--slide-mpp"), (["--slide-mpp", "4.15"], "--spot-diameter-um")])
def test_anndata_without_sizes_is_refused(shared_data: Path, tmp_path: Path, given: list[str], asked: str) -> None:
    """Neither the resolution nor the width of the spots is guessed; each is asked for by its option."""
    file, image = (shared_data / "mob" / name for name in ("MOB1.h5ad", "MOB1.jpg"))
    done = superst("prepare", "h5ad", file, "--image", image, *given, "--out", tmp_path / "section.zarr", code=2)
    assert f"pass {asked} (CLI)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_st_tables_arrive_where_they_meet(tumour: tuple[Section, str], shared_data: Path) -> None:
    """The spots of both tables with all their counts; um per pixel are those of neighbours 200 um apart."""
    section, said = tumour
    counts = pd.read_csv(shared_data / "her2st" / "C3.tsv.gz", sep="\t", index_col=0)
    table = pd.read_csv(shared_data / "her2st" / "C3_selection.tsv", sep="\t")
    table.index = table["x"].astype(str) + "x" + table["y"].astype(str)
    both = [name for name in counts.index if name in table.index]
    assert list(section.spots.index) == both
    assert len(both) == 180
    assert "2 of 182 positions have no counts and were dropped: 13x9, 17x14" in said
    assert int(section.counts.sum()) == int(counts.loc[both].to_numpy().sum())
    assert section.n_genes == counts.shape[1]
    right = table.set_index(["x", "y"])["pixel_x"]
    step_px = (right - right.rename(lambda x: x + 1, level="x")).dropna()  # from each spot's left neighbour
    assert section.slide["mpp_x"] == pytest.approx(200 / step_px.mean(), rel=0.01)
    np.testing.assert_allclose(section.spots["x_um"], table.loc[both, "pixel_x"] * section.slide["mpp_x"])
    np.testing.assert_allclose(2 * section.spots["radius_um"], 100.0)
    assert 0.14 < section.tissue.mean() < 0.21


def whiteness(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """1 where hardly anything absorbs: fat and lumina."""
    return (image.min(axis=2) > 210).astype(np.float64)


def haematoxylin(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Optical density of red light, which eosin lets pass."""
    return -np.log(np.maximum(image[..., 0], 8) / 255.0)


@pytest.mark.parametrize(
    ("name", "look", "gene"),
    [("breast", whiteness, "ADIPOQ"), ("bulb", haematoxylin, None), ("tumour", haematoxylin, None)],
)
def test_counts_lie_on_the_histology_as_given(
    request: pytest.FixtureRequest,
    name: str,
    look: Callable[[NDArray[np.uint8]], NDArray[np.float64]],
    gene: str | None,
) -> None:
    """Fat cells' gene where it is white, many UMIs where nuclei are dense: more so than if the spots lay mirrored."""
    section: Section = request.getfixturevalue(name)[0]
    total = np.asarray(section.counts.sum(axis=1)).ravel()
    values = np.log(total)
    if gene is not None:
        values = np.log1p(section.counts[:, section.genes.index.get_loc(gene)].toarray().ravel() * 1e4 / total)
    place = section.spots[["y_um", "x_um"]].to_numpy() / section.mpp
    seen = uniform_filter(look(section.image), size=round(2 * section.spots["radius_um"].iloc[0] / section.mpp))
    middle = place.min(axis=0) + place.max(axis=0)

    def agreement(points: NDArray[np.float64]) -> float:
        row, col = np.clip(points.astype(np.int64), 0, np.array(seen.shape) - 1).T
        return float(np.corrcoef(seen[row, col], values)[0, 1])

    mirrored = [agreement(np.where(axes, middle - place, place)) for axes in ([0, 1], [1, 0], [1, 1])]
    assert agreement(place) > 0.4
    assert agreement(place) > max(mirrored) + 0.3


def test_an_aperio_slide_is_read_at_its_own_resolution(shared_data: Path, tmp_path: Path) -> None:
    """CMU-1-Small-Region states 0.499 um; prepared at that, the section is level 0 pixel by pixel."""
    file = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    section, said = prepared(tmp_path, "slide", file, "--mpp", 0.499)
    assert "2220 x 2967 px at 0.499 um (from file)" in said
    assert (section.slide["mpp_x"], section.slide["mpp_y"], section.n_spots) == (0.499, 0.499, 0)
    level0 = tifffile.imread(file, key=0)
    assert section.image.shape == level0.shape == (2967, 2220, 3)
    assert np.abs(section.image.astype(int) - level0).mean() < 0.5
    assert 0.3 < section.tissue.mean() < 0.5


def test_a_plain_tiff_needs_its_resolution(shared_data: Path, tmp_path: Path) -> None:
    """kidney-48-5 states none; too small a number makes its tissue a speck and is refused, a fitting one is right."""
    file, out = shared_data / "wsi" / "kidney-48-5.tif", tmp_path / "section.zarr"
    assert "pass --slide-mpp" in superst("prepare", "slide", file, "--out", out, code=2).stderr
    speck = superst("prepare", "slide", file, "--slide-mpp", 0.5, "--out", out, code=2).stderr
    assert "no tissue found on slide kidney-48-5 (187 x 113 px at 4 um)" in speck
    assert "that its mpp is right" in speck
    section, _ = prepared(tmp_path, "slide", file, "--slide-mpp", 8, "--mpp", 8)
    np.testing.assert_array_equal(section.image, np.asarray(Image.open(file)))
    row, col = np.argwhere(section.tissue).mean(axis=0)
    assert (abs(row - 534) < 15, abs(col - 343) < 15) == (True, True)
    assert 0.001 < section.tissue.mean() < 0.01


@pytest.mark.parametrize("name", ["panimg_valid_tiff.tif", "boxes.tiff"])
def test_tiny_pyramids_without_tissue_are_refused(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Their print setting is no resolution; with one they open, and hold no tissue."""
    file, out = shared_data / "wsi" / name, tmp_path / "section.zarr"
    said = superst("prepare", "slide", file, "--out", out, code=2).stderr
    assert "outside 0.01..100 and therefore ignored; pass --slide-mpp" in said
    said = superst("prepare", "slide", file, "--slide-mpp", 0.5, "--out", out, code=2).stderr
    assert f"no tissue found on slide {file.stem}" in said
    assert list(tmp_path.iterdir()) == []
