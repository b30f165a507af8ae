"""What users get wrong, by the command line: exit code 2 and one message: what must hold, what came, what next."""

from __future__ import annotations

import errno
import gzip
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from scipy.io import mmwrite
from typer.testing import CliRunner

from superst_monai.cli.app import app
from superst_monai.data.store import read_section
from superst_monai.data.synthetic import SyntheticTissue, make_tissue, write_slide

SMALL = ["--epochs", 1, "--metagenes", 3, "--depth", 3, "--width", 4, "--patch", 32, "--batch", 2, "--min-counts", 1]
CIRCLES = ["--image-scale", 1, "--spot-diameter-um", 60, "--slide-mpp", 1]


def superst(*words: object) -> Any:
    """Run a command that must succeed."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


def refused(*words: object) -> str:
    """Run a command that must end with code 2 and one message; the message, without progress lines before it."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    before, *messages = done.stderr.split("superst: ")
    assert len(messages) == 1, done.stderr
    assert all(
        re.match(r"(training|fitting fields|predicting): +\d+ %|note: ", line) for line in before.splitlines()
    ), before
    return str(messages[0])


def write_h5ad(path: Path, tissue: SyntheticTissue, counts: Any = None, **changes: Any) -> Path:
    """Write the counts of a tissue, or others, with `changes` to the AnnData's fields."""
    fields: dict[str, Any] = {"obs": tissue.spots[["array_row"]], "var": tissue.genes[["gene_id"]]}
    fields |= {"obsm": {"spatial": tissue.spots[["x_px0", "y_px0"]].to_numpy()}} | changes
    anndata.AnnData(tissue.counts.astype(np.float32) if counts is None else counts, **fields).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def tissue() -> SyntheticTissue:
    """A tissue of 600 um with some thirty spots; one spot and two genes have no counts."""
    made = make_tissue(seed=1, size_px=600, n_genes=12)
    counts = made.counts.tolil()
    counts[4] = 0
    counts[:, [2, 7]] = 0
    made.counts.__dict__.update(sparse.csr_matrix(counts).__dict__)
    return made


@pytest.fixture(scope="module")
def work(tissue: SyntheticTissue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good input and what comes of it: slide.tif, counts.h5ad, A.zarr, run, maps.zarr; and more of it."""
    folder = tmp_path_factory.mktemp("work")
    write_slide(tissue, folder / "slide.tif")
    full = Image.fromarray(tissue.image)
    full.save(folder / "plain.png")
    full.save(folder / "plain.jpg")
    for factor in (2, 4):
        full.reduce(factor).save(folder / f"small{factor}.png")
    write_h5ad(folder / "counts.h5ad", tissue)
    given = ("prepare", "h5ad", folder / "counts.h5ad", "--image", folder / "slide.tif", *CIRCLES)
    superst(*given, "--mpp", 6, "--out", folder / "A.zarr")
    superst(*given, "--mpp", 12, "--out", folder / "coarse.zarr")
    superst("prepare", "slide", folder / "slide.tif", "--mpp", 6, "--out", folder / "alone.zarr")
    superst("train", folder / "A.zarr", "--out", folder / "run", "--mpp", 6, "--covariate", "section=section", *SMALL)
    superst("predict", folder / "run", folder / "A.zarr", "--out", folder / "maps.zarr", "--samples", 2)
    return folder


@pytest.fixture
def outs(tissue: SyntheticTissue, tmp_path: Path) -> Path:
    """The tissue as Space Ranger writes it, without a picture; that of the factors is of half the size."""
    folder = tmp_path / "outs"
    matrix = folder / "filtered_feature_bc_matrix"
    matrix.mkdir(parents=True)
    (folder / "spatial").mkdir()
    mmwrite(matrix / "matrix.mtx", sparse.coo_matrix(tissue.counts.T))
    (matrix / "matrix.mtx.gz").write_bytes(gzip.compress((matrix / "matrix.mtx").read_bytes()))
    (matrix / "matrix.mtx").unlink()
    (matrix / "barcodes.tsv").write_text("\n".join(tissue.spots.index) + "\n")
    rows = [f"{gene_id}\t{gene}\tGene Expression" for gene, gene_id in tissue.genes["gene_id"].items()]
    (matrix / "features.tsv").write_text("\n".join(rows) + "\n")
    names = {"x_px0": "pxl_col_in_fullres", "y_px0": "pxl_row_in_fullres"}
    tissue.spots.drop(columns="diameter_px0").rename(columns=names).assign(in_tissue=1).to_csv(
        folder / "spatial" / "tissue_positions.csv"
    )
    factors = {"spot_diameter_fullres": 60.0, "tissue_hires_scalef": 0.5}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    return folder


def test_spots_and_genes_without_counts_are_told_and_kept(work: Path, tissue: SyntheticTissue, tmp_path: Path) -> None:
    """They are legal: the section is prepared, the notes and the checks count them, and the run above trained on it."""
    given = ("--image", work / "slide.tif", *CIRCLES, "--out", tmp_path / "A.zarr")
    said = superst("prepare", "h5ad", work / "counts.h5ad", *given).stdout
    n_spots = len(tissue.spots)
    assert f"1 of {n_spots} spots have no count" in said
    assert "2 of 12 genes have no count in any spot kept" in said
    assert f"{n_spots}, 1 without counts (kept)" in said
    assert "12, 2 without counts (kept)" in said
    assert read_section(tmp_path / "A.zarr").counts.shape == (n_spots, 12)


@pytest.mark.parametrize(
    "words",
    [
        "prepare slide plain.png --out X.zarr",
        "prepare h5ad counts.h5ad --image plain.png --spot-diameter-um 60 --out X.zarr",
        "predict run plain.png --out X.zarr",
    ],
)
def test_a_resolution_that_nobody_states_is_asked_for(work: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture without um per pixel is refused wherever it comes in, naming --slide-mpp; nothing is written."""
    monkeypatch.chdir(work)
    said = refused(*words.split())
    assert "pass --slide-mpp" in said
    assert not Path("X.zarr").exists()


def test_coordinates_of_a_larger_image_are_recognised(work: Path, outs: Path, tmp_path: Path) -> None:
    """Full-resolution coordinates on the hires picture: the factor is named, and with it the section is right."""
    given = ("prepare", "visium", outs, "--image", work / "small2.png", "--out", tmp_path / "A.zarr")
    said = refused(*given)
    assert "spots lie off the slide" in said
    assert "multiplied by 0.5 (tissue_hires_scalef)" in said
    assert "pass --image-scale 0.5" in said
    assert not (tmp_path / "A.zarr").exists()
    superst(*given, "--image-scale", 0.5)
    right = read_section(work / "A.zarr").spots
    np.testing.assert_allclose(read_section(tmp_path / "A.zarr").spots["x_um"], right["x_um"])


def test_a_picture_too_small_for_tissue_is_recognised(work: Path, outs: Path, tissue: SyntheticTissue) -> None:
    """Where the wrong picture is so small that no tissue is found, the spots off it still tell why."""
    off = int((tissue.spots[["x_px0", "y_px0"]] > 150).any(axis=1).sum())
    said = refused("prepare", "visium", outs, "--image", work / "small4.png", "--out", work / "X.zarr")
    assert "no tissue found on slide small4 (38 x 38 px at 4 um)" in said
    assert f"{off} of {len(tissue.spots)} spots lie off it" in said
    assert "--image-scale, tissue_hires_scalef is 0.5" in said


def test_coordinates_of_a_smaller_image_are_recognised(work: Path, tissue: SyntheticTissue, tmp_path: Path) -> None:
    """Coordinates of the hires picture on the full-resolution slide: the inverse factor is named, and is right."""
    spatial = {"library": {"images": {}, "scalefactors": {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 15.0}}}
    small = {"spatial": tissue.spots[["x_px0", "y_px0"]].to_numpy() * 0.25}
    file = write_h5ad(tmp_path / "a.h5ad", tissue, obsm=small, uns={"spatial": spatial})
    given = ("prepare", "h5ad", file, "--image", work / "slide.tif", "--out", tmp_path / "A.zarr")
    said = refused(*given)
    assert re.search(r"multiplied by (4|3\.999) ", said)
    assert "pass --image-scale 4" in said
    superst(*given, "--image-scale", 4)
    right = read_section(work / "A.zarr").spots
    np.testing.assert_allclose(read_section(tmp_path / "A.zarr").spots["x_um"], right["x_um"])


def test_spots_off_the_slide_are_counted(work: Path, tissue: SyntheticTissue, tmp_path: Path) -> None:
    """How many lie off it, and the first with its place."""
    place = tissue.spots[["x_px0", "y_px0"]].to_numpy() + np.array([250.0, 0.0])
    file = write_h5ad(tmp_path / "a.h5ad", tissue, obsm={"spatial": place})
    off = np.flatnonzero(place[:, 0] > 600)
    first = f"first: {tissue.spots.index[off[0]]}, x_px0={place[off[0], 0]:.1f}, y_px0={place[off[0], 1]:.1f}"
    said = refused("prepare", "h5ad", file, "--image", work / "slide.tif", *CIRCLES, "--out", tmp_path / "A.zarr")
    assert f"{len(off)} of {len(place)} spots lie off the slide ({first})" in said
    assert "--image-scale" in said


def fractional(counts: Any) -> Any:
    """Counts that are no whole numbers."""
    return counts * 10.5


def negative(counts: Any) -> Any:
    """Counts one of which is below zero."""
    changed = counts.tolil()
    changed[3, 1] = -2
    return changed.tocsr()


def log_normalised(counts: Any) -> Any:
    """What scanpy's normalize_total and log1p leave."""
    total = np.maximum(np.asarray(counts.sum(axis=1)), 1)
    return sparse.csr_matrix(np.log1p(counts.toarray() / total * 1e4).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fractional, r"\d+ of \d+ stored values are not integers \(first [\d.]+ at spot 'spot-\w+', gene '[\w-]+'\)"),
        (negative, r"1 of \d+ stored values are negative \(first -2 at spot 'spot-\w+', gene '[\w-]+'\)"),
        (log_normalised, r"not integers.*it looks log-normalised"),
    ],
)
def test_counts_must_be_raw(
    work: Path, tissue: SyntheticTissue, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    """Fractions, negative and log-normalised values are told apart, with the first culprit and where counts may be."""
    file = write_h5ad(tmp_path / "a.h5ad", tissue, change(tissue.counts.astype(np.float32)))
    said = refused("prepare", "h5ad", file, "--image", work / "slide.tif", *CIRCLES, "--out", tmp_path / "A.zarr")
    assert re.search(reason, said)
    assert "pass raw UMI counts (layers['counts']" in said


def test_an_empty_section_is_refused(work: Path, tissue: SyntheticTissue, tmp_path: Path) -> None:
    """No spot in the file, none under tissue, none with counts, and a slide without tissue each say so."""
    image = ("--image", work / "slide.tif", *CIRCLES, "--out", tmp_path / "A.zarr")
    none = write_h5ad(
        tmp_path / "none.h5ad",
        tissue,
        tissue.counts[:0].astype(np.float32),
        obs=tissue.spots[:0],
        obsm={"spatial": np.zeros((0, 2))},
    )
    assert "0 spots" in refused("prepare", "h5ad", none, *image)
    outside = write_h5ad(tmp_path / "outside.h5ad", tissue, obs=tissue.spots[["array_row"]].assign(in_tissue=0))
    assert f"none of its {len(tissue.spots)} spots is under tissue" in refused("prepare", "h5ad", outside, *image)
    zero = write_h5ad(tmp_path / "zero.h5ad", tissue, tissue.counts.astype(np.float32) * 0)
    said = refused("prepare", "h5ad", zero, *image)
    assert f"needs spots with counts, got {len(tissue.spots)} spots, 12 genes and 0 counts" in said
    Image.new("RGB", (50, 50), (240, 240, 240)).save(tmp_path / "glass.png")
    said = refused("prepare", "slide", tmp_path / "glass.png", "--slide-mpp", 4, "--out", tmp_path / "A.zarr")
    assert "no tissue found on slide glass" in said
    assert "check that it is a brightfield H&E image" in said
    assert not (tmp_path / "A.zarr").exists()


@pytest.mark.parametrize("name", ["plain.jpg", "plain.png", "slide.tif"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_truncated_image_is_named(work: Path, tmp_path: Path, name: str, share: float) -> None:
    """A download that stopped half-way, or near the end, is refused as cut off, not read as white."""
    whole = (work / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    said = refused("prepare", "slide", tmp_path / name, "--slide-mpp", 1, "--out", tmp_path / "A.zarr")
    assert name in said
    assert re.search("damaged|cut off", said)
    assert "copy it again" in said
    assert not (tmp_path / "A.zarr").exists()


def cut(path: Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path: Path) -> None:
    """Keep the first bytes of a file and put noise for the rest."""
    path.write_bytes(path.read_bytes()[:20] + random.Random(0).randbytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, spoil])
@pytest.mark.parametrize("kind", ["h5", "mtx", "h5ad"])
def test_damaged_counts_are_named(
    work: Path, outs: Path, tissue: SyntheticTissue, tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    """A counts file that is cut off or scrambled is named with what it should be and the next step."""
    matrix = outs / "filtered_feature_bc_matrix"
    words: tuple[object, ...] = ("prepare", "visium", outs, "--image", work / "slide.tif", "--out", tmp_path / "A.zarr")
    file = matrix / "matrix.mtx.gz"
    if kind == "h5":
        shutil.rmtree(matrix)
        file = outs / "filtered_feature_bc_matrix.h5"
        with h5py.File(file, "w") as stream:
            stream["matrix/data"] = tissue.counts.data
            stream["matrix/indices"] = np.tile(tissue.counts.indices, 100)
    if kind == "h5ad":
        file = tmp_path / "a.h5ad"
        shutil.copy(work / "counts.h5ad", file)
        words = ("prepare", "h5ad", file, "--image", work / "slide.tif", *CIRCLES, "--out", tmp_path / "A.zarr")
    damage(file)
    said = refused(*words)
    assert f"{file} cannot be read as " in said
    assert "copy or download the file again" in said


def test_genes_must_overlap(work: Path, tissue: SyntheticTissue, tmp_path: Path) -> None:
    """Symbols in one section and ids in the other: neither an evaluation nor a training has a gene to work with."""
    ids = tissue.genes.set_axis(tissue.genes["gene_id"].to_numpy(), axis=0)[["gene_id"]]
    file = write_h5ad(tmp_path / "ids.h5ad", tissue, var=ids)
    other = tmp_path / "ids.zarr"
    superst("prepare", "h5ad", file, "--image", work / "slide.tif", *CIRCLES, "--mpp", 6, "--out", other)
    said = refused("evaluate", work / "maps.zarr", "--truth", other, "--out", tmp_path / "e")
    assert re.search(
        r"must share genes, got none of 10 \(of the maps: .*; of the section: SYN00000001.*use one kind", said
    )
    said = refused("train", work / "A.zarr", other, "--out", tmp_path / "run", *SMALL)
    assert re.search(
        "must share genes.*A has 12 genes such as .*ids has 12 genes such as SYN00000001.*Use one nam", said
    )
    assert not (tmp_path / "run").exists()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("section", "zarr.json"),
        ("section", "images/histology/s1/c/0/0/0"),
        ("section", "tables/counts/X/data/c/0"),
        ("maps", "tables/metagenes/X/c/0/0"),
        ("maps", "posterior/activity/c/1/0/0/0"),
    ],
)
def test_a_full_disk_leaves_nothing_behind(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, place: str
) -> None:
    """Wherever in the store the space runs out, the message says so, and what was there is as it was."""
    import zarr.storage._local as local

    put = local._put

    def fill(path: Path, *rest: Any, **more: Any) -> Any:
        if str(path).endswith(place):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return put(path, *rest, **more)

    monkeypatch.setattr(local, "_put", fill)
    out = tmp_path / "out.zarr"
    words = {
        "section": ("prepare", "h5ad", work / "counts.h5ad", "--image", work / "slide.tif", *CIRCLES, "--out", out),
        "maps": ("predict", work / "run", work / "A.zarr", "--samples", 2, "--out", out),
    }
    full = f"{out} cannot be written (disk full), nothing was left behind; free some space"
    assert full in refused(*words[what])
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(work / "coarse.zarr", out)
    assert full in refused(*words[what], "--overwrite")
    assert list(tmp_path.iterdir()) == [out]
    assert files(out) == files(work / "coarse.zarr")


def test_a_full_disk_keeps_the_tiles_that_are_finished(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the space runs out after a tile, the message says what is kept, and --resume ends it."""
    import zarr.storage._local as local

    put = local._put

    def fill(path: Path, *rest: Any, **more: Any) -> Any:
        if str(path).endswith("posterior/computed/c/0/0"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return put(path, *rest, **more)

    out = tmp_path / "out.zarr"
    words = ("predict", work / "run", work / "A.zarr", "--samples", 2, "--out", out)
    with monkeypatch.context() as patched:
        patched.setattr(local, "_put", fill)
        said = refused(*words)
    assert f"{out} cannot be written (disk full), 1 finished tile" in said
    assert "--resume" in said
    assert not out.exists()
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--resume")])
    assert done.exit_code == 0, done.output
    assert out.is_dir()


def test_unknown_conditions_are_refused(work: Path, tmp_path: Path) -> None:
    """A level or a covariate that the run does not have is answered with those it has."""
    predict = ("predict", work / "run", work / "A.zarr", "--out", tmp_path / "m.zarr", "--condition")
    assert "section=C9 is not among the levels A of this run; leave --condition out" in refused(*predict, "section=C9")
    assert "its covariates are section" in refused(*predict, "patient=P1")
    train = ("train", work / "A.zarr", "--out", tmp_path / "run", *SMALL, "--covariate")
    said = refused(*train, "patient=donor")
    assert re.search("no section has a column donor .*the first has .*section.*Pass --covariate NAME=COLUMN", said)
    rows = read_section(work / "A.zarr").spots["array_row"].nunique()
    assert f"column array_row of A holds {rows} levels, not one" in refused(*train, "row=array_row")
    assert list(tmp_path.iterdir()) == []


def test_resolutions_must_fit(work: Path, tmp_path: Path) -> None:
    """What is coarser than the run cannot be predicted on, and what is stored cannot be trained on finer."""
    said = refused("predict", work / "run", work / "coarse.zarr", "--out", tmp_path / "m.zarr")
    assert "the run works at 6 um per pixel, but section coarse holds 12" in said
    assert "--mpp 6 or smaller" in said
    said = refused("predict", work / "run", work / "plain.png", "--slide-mpp", 12, "--out", tmp_path / "m.zarr")
    assert "slide plain has 12" in said
    said = refused("train", work / "A.zarr", work / "coarse.zarr", "--mpp", 3, "--out", tmp_path / "run", *SMALL)
    assert "training at 3 um/px needs sections at least that fine, but A has 6, coarse has 12" in said
    assert "with a larger --mpp" in said
    said = refused("prepare", "slide", work / "slide.tif", "--mpp", 0.5, "--out", tmp_path / "A.zarr")
    assert "cannot be finer, got mpp=0.5; pass --mpp 1 " in said
    said = refused("evaluate", work / "maps.zarr", "--truth", work / "coarse.zarr", "--out", tmp_path / "e")
    assert "as fine as the maps (6 um per pixel), got 12; prepare it again with --mpp 6 or less" in said
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_ends_the_training(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says at which step, and how to go on."""
    from superst_monai.engines import handlers

    check = handlers.FiniteGuard.check_loss

    def poison(self: Any, engine: Any) -> None:
        if engine.state.iteration == 2:
            engine.state.output["loss"] = engine.state.output["loss"] * float("nan")
        check(self, engine)

    monkeypatch.setattr(handlers.FiniteGuard, "check_loss", poison)
    said = refused("train", work / "A.zarr", "--out", tmp_path / "run", *SMALL)
    assert "the loss must stay finite, but became nan at step 2" in said
    assert "--learning-rate" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("predict A.zarr A.zarr --out X.zarr", "A.zarr must be a run folder, but has no run.json"),
        ("predict run maps.zarr --out X.zarr", "maps.zarr must be a section, got maps"),
        ("predict run counts.h5ad --out X.zarr", "counts.h5ad must be a slide that OpenSlide opens"),
        ("train maps.zarr --out X", "maps.zarr must be a section, got maps"),
        ("train run --out X", "run is not a zarr store"),
        ("train alone.zarr --out X", "training sections need counts, but alone hold a slide alone"),
        ("train A.zarr --out run", "must be empty or new for a run; continue it with --resume"),
        ("train --resume --out nothing", "nothing holds none (no configs/train.yaml)"),
        ("maps A.zarr --genes ERBB2 --out X", "A.zarr must hold posterior maps, got section"),
        ("maps run --genes ERBB2 --out X", "run is not a zarr store"),
        (
            "maps maps.zarr --genes CIRCLE-01,XYZ --out X",
            "the maps hold 10 genes, but not CIRCLE-01 (similar: circle-01, ",
        ),
        ("evaluate A.zarr --truth A.zarr --out X", "A.zarr must hold posterior maps, got section"),
        ("evaluate maps.zarr --truth maps.zarr --out X", "maps.zarr must be a section, got maps"),
        ("evaluate maps.zarr --truth alone.zarr --out X", "section alone has no counts"),
        ("inspect run", "run must be a store of `superst prepare` or `superst predict`"),
        ("prepare slide slide.tif --out A.zarr", "A.zarr must not exist yet, but it does"),
        ("predict run A.zarr --out maps.zarr", "maps.zarr must not exist yet, but it does"),
        ("prepare visium run --out X.zarr", "run: no counts: filtered_feature_bc_matrix.h5"),
        ("prepare visium slide.tif --out X.zarr", "slide.tif must be a folder"),
        ("prepare h5ad slide.tif --image slide.tif --out X.zarr", "slide.tif cannot be read as AnnData"),
        ("prepare visium no --image gone --out X.zarr", "there is no no (OUTS), no gone (image)"),
        ("prepare st --counts no --image gone --out X.zarr", "there is no no (counts), no gone (image)"),
        ("prepare h5ad no --out X.zarr", "there is no no (FILE)"),
        ("prepare slide no --out X.zarr", "there is no no (SLIDE)"),
        ("train A.zarr no --out X", "there is no no (SECTION)"),
        ("predict no gone --out X.zarr", "there is no no (RUN), no gone (SECTION_OR_SLIDE)"),
        ("maps no --genes A --out X", "there is no no (MAPS)"),
        ("evaluate no --truth gone --out X", "there is no no (MAPS), no gone (truth)"),
        ("inspect no", "there is no no (SECTION_OR_MAPS)"),
    ],
)
def test_things_of_another_kind_are_refused(
    work: Path, words: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing, taken or something else is named, and nothing is written."""
    monkeypatch.chdir(work)
    before = sorted(Path().iterdir())
    assert reason in refused(*words.split())
    assert sorted(Path().iterdir()) == before


def test_a_bundle_without_weights_is_no_run(work: Path, tmp_path: Path) -> None:
    """A run whose weights are gone, and the untrained bundle, each say what is missing."""
    from superst_monai.engines.run_folder import bundle_folder

    shutil.copytree(work / "run", tmp_path / "run")
    (tmp_path / "run" / "models" / "model.pt").unlink()
    said = refused("predict", tmp_path / "run", work / "A.zarr", "--out", tmp_path / "m.zarr")
    assert "must hold weights in models/model.pt" in said
    said = refused("predict", bundle_folder(), work / "A.zarr", "--out", tmp_path / "m.zarr")
    assert "must be a run folder, but has no run.json, genes.csv" in said


def test_an_existing_store_is_replaced_when_asked(work: Path, tmp_path: Path) -> None:
    """With --overwrite a section takes the place of another; a folder that is no store stays."""
    out = tmp_path / "A.zarr"
    words = ("prepare", "slide", work / "slide.tif", "--out", out)
    superst(*words, "--mpp", 8)
    superst(*words, "--mpp", 6, "--overwrite")
    assert read_section(out).mpp == 6
    (tmp_path / "B.zarr").mkdir()
    (tmp_path / "B.zarr" / "mine.txt").touch()
    said = refused(*words[:-1], tmp_path / "B.zarr", "--overwrite")
    assert "B.zarr is not a zarr store, so it is not overwritten" in said
    assert (tmp_path / "B.zarr" / "mine.txt").exists()


def test_a_table_of_counts_must_be_raw_too(work: Path, tmp_path: Path) -> None:
    """Space Ranger's and ST's tables are held to the same law as AnnData's, and both positions are asked for."""
    table = pd.DataFrame([[1.5, 2.0], [3.0, -1.0], [0.0, 1.0]], index=["2x2", "3x2", "2x3"], columns=["A", "B"])
    table.to_csv(tmp_path / "c.tsv", sep="\t")
    words = (
        "prepare",
        "st",
        "--counts",
        tmp_path / "c.tsv",
        "--image",
        work / "slide.tif",
        "--out",
        tmp_path / "A.zarr",
    )
    said = refused(*words)
    assert "1 of 5 stored values are not integers (first 1.5 at spot '2x2', gene 'A')" in said
    assert "1 of 5 stored values are negative (first -1 at spot '3x2', gene 'B')" in said
    table.abs().round().to_csv(tmp_path / "c.tsv", sep="\t")
    assert "exactly one of spots and transform" in refused(*words)
