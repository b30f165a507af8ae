"""The evaluation of maps: right numbers, honest about what was left out, and files that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from superst_monai.analysis import report
from superst_monai.analysis.comparison import compare
from superst_monai.analysis.report import evaluate_maps
from superst_monai.data.section import Section, empty_tables
from superst_monai.data.store import read_section, write_section
from superst_monai.errors import AlignmentError, AssayError, ResolutionError, RunError, StoreError
from superst_monai.inference.maps import open_maps
from superst_monai.model.predictive import nb_log_likelihood

Maker = Callable[..., Path]
SectionMaker = Callable[..., Section]
KEYS = {"n_spots", "n_genes", "raw", "lognorm", "depth", "r2", "nb_loglik_per_spot", "coverage", "baselines", "notes"}


@pytest.fixture
def truth(make_section: SectionMaker, tmp_path: Path) -> Path:
    """A stored section of the maps' slide."""
    write_section(make_section(), tmp_path / "truth.zarr")
    return tmp_path / "truth.zarr"


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the picture, which takes most of the time."""
    monkeypatch.setattr(report, "save_figure", lambda figure, path: None)


def test_numbers_are_those_of_the_plain_sums(make_maps: Maker, truth: Path, tmp_path: Path) -> None:
    """Mean, spread and likelihood are those of all genes summed at once, although taken two genes at a time."""
    path = make_maps()
    result = evaluate_maps(path, truth, tmp_path / "out", genes_per_chunk=2)
    both = compare(open_maps(path), read_section(truth))
    sums = both.maps.sum_over(both.label, n_supports=6)
    table = anndata.read_h5ad(tmp_path / "out" / "predicted.h5ad")
    np.testing.assert_allclose(table.X, sums.mean, rtol=1e-5)
    np.testing.assert_allclose(table.layers["sd"], sums.sd, rtol=1e-5)
    np.testing.assert_array_equal(table.layers["observed"].toarray(), read_section(truth).counts.toarray())
    want = nb_log_likelihood(both.observed.toarray(), sums.total_count, sums.logits[:, None]).sum() / 6
    assert result["nb_loglik_per_spot"] == pytest.approx(want, rel=1e-5)
    assert result["n_spots"] == 6
    assert set(result["coverage"]) == {"50", "90"}


@pytest.mark.usefixtures("no_picture")
def test_recalibrated_maps_are_scored_with_and_without_the_factor(
    make_maps: Maker, truth: Path, tmp_path: Path
) -> None:
    """The law before is that of the same maps without a factor; expectations are the same, spreads are not."""
    plain = evaluate_maps(make_maps(), truth, tmp_path / "plain")
    assert plain["calibration"] is None
    assert plain["uncalibrated"] is None
    calibration = {"mode": "field", "factor": 4.0}
    maps = make_maps(record={"calibration": calibration, "counts_used": True})
    result = evaluate_maps(maps, truth, tmp_path / "out")
    assert result["calibration"] == calibration
    for key, value in result["uncalibrated"].items():
        assert value == plain[key], key
    assert result["coverage"]["90"] != plain["coverage"]["90"]
    assert result["raw"] == plain["raw"]
    assert result["sd_ratio"]["all"] < plain["sd_ratio"]["all"]
    assert any(note.startswith("the maps use counts of S (its field)") for note in result["notes"])


def test_files_hold_what_is_returned(make_maps: Maker, truth: Path, tmp_path: Path) -> None:
    """evaluation.json is the returned dictionary with its promised keys; the table has a row a gene; no leftovers."""
    result = evaluate_maps(make_maps(), truth, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert json.loads((out / "evaluation.json").read_text()) == result
    assert set(result) >= KEYS
    assert set(result["raw"]["top100"]) >= {"median", "q25", "q75"}
    genes = pd.read_csv(out / "genes.csv", index_col="gene")
    assert genes["gene_id"].to_dict() == {"A": "ID-A", "B": "ID-B", "C": "ID-C"}
    assert result["raw"]["all"]["median"] == pytest.approx(genes["raw"].median())
    assert sorted(p.name for p in out.iterdir()) == [
        "evaluation.json",
        "evaluation.png",
        "genes.csv",
        "predicted.h5ad",
    ]


def test_baselines_learn_from_the_training_sections_alone(
    make_maps: Maker, make_section: SectionMaker, make_run: Maker, truth: Path, tmp_path: Path
) -> None:
    """The gene mean has no correlation and the R2 of the training mean; the truth is not said to be trained on."""
    other = make_section(name="T", sha256="other", seed=3)
    run = make_run(other, make_section(name="U", sha256="third", seed=4))
    result = evaluate_maps(make_maps(record={"run": str(run)}), truth, tmp_path / "out")
    assert result["trained_on_truth"] is False
    assert result["notes"] == []
    found = result["baselines"]
    assert found["gene_mean"]["raw"]["all"]["median"] is None
    seen = read_section(truth).counts.toarray()
    mean = np.vstack([other.counts.toarray(), make_section(seed=4).counts.toarray()]).mean(0)
    r2 = 1 - ((seen - mean) ** 2).sum(0) / ((seen - seen.mean(0)) ** 2).sum(0)
    assert found["gene_mean"]["r2"]["all"] == pytest.approx(np.median(r2))
    assert found["image_intensity"]["raw"]["all"]["n_genes"] == 3
    table = pd.read_csv(tmp_path / "out" / "genes.csv", index_col="gene")
    np.testing.assert_allclose(table["gene_mean_r2"], r2)


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("known_by", ["path", "slide"])
def test_a_truth_that_was_trained_on_is_said_so(
    make_maps: Maker, make_section: SectionMaker, make_run: Maker, truth: Path, tmp_path: Path, known_by: str
) -> None:
    """The same store, or another store of the same slide file, is reported as trained on."""
    run = make_run(make_section(name="T"))
    record = json.loads((run / "run.json").read_text())
    if known_by == "path":
        record["sections"][0] |= {"path": str(truth), "slide": None}
    (run / "run.json").write_text(json.dumps(record))
    result = evaluate_maps(make_maps(record={"run": str(run)}), truth, tmp_path / "out")
    assert result["trained_on_truth"] is True
    assert result["notes"][0].startswith("section S was in the training set")


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("no run", "do not say which run"),
        ("run gone", "no readable run.json"),
        ("odd record", "names no sections"),
        ("no sections", "names no training section"),
        ("no path", "section T was not read from a store"),
        ("store gone", "there is no section .*T.zarr"),
        ("genes", "section T lacks 1 of 3 genes"),
    ],
)
def test_baselines_that_cannot_be_fitted_are_none_with_a_reason(
    make_maps: Maker,
    make_section: SectionMaker,
    make_run: Maker,
    truth: Path,
    tmp_path: Path,
    damage: str,
    reason: str,
) -> None:
    """Without the training sections both baselines are None and a note says why; the rest is evaluated."""
    genes = ("A", "B") if damage == "genes" else ("A", "B", "C")
    run = make_run(make_section(name="T", sha256="other", genes=genes))
    record = json.loads((run / "run.json").read_text())
    if damage == "odd record":
        record = []
    elif damage == "no sections":
        record["sections"] = []
    elif damage == "no path":
        record["sections"][0]["path"] = None
    elif damage == "store gone":
        record["sections"][0]["path"] += "/T.zarr"
    (run / "run.json").write_text(json.dumps(record))
    where = {"no run": None, "run gone": str(run / "gone")}.get(damage, str(run))
    result = evaluate_maps(make_maps(record={"run": where}), truth, tmp_path / "out")
    assert result["baselines"] == {"gene_mean": None, "image_intensity": None}
    assert result["depth"] is not None
    with pytest.raises(RunError, match=reason):
        raise RunError(result["notes"][-1])


def test_what_is_left_out_is_counted(make_maps: Maker, make_section: SectionMaker, tmp_path: Path) -> None:
    """Genes of one side, spots that lost their pixels to another, and another image file are reported."""
    x_um = np.array([80.0, 180.0, 280.0, 80.0, 180.0, 900.0])  # the last lies off the maps
    section = make_section(genes=("C", "X", "A"), sha256="another", x_um=x_um)
    write_section(section, tmp_path / "truth.zarr")
    result = evaluate_maps(make_maps(), tmp_path / "truth.zarr", tmp_path / "out")
    assert (result["n_spots"], result["n_spots_without_pixels"]) == (5, 1)
    assert result["n_genes_left_out"] == {"maps": 1, "truth": 1}
    table = anndata.read_h5ad(tmp_path / "out" / "predicted.h5ad")
    assert list(table.obs_names) == [f"spot{i}" for i in range(5)]
    assert list(table.var_names) == ["A", "C"]
    np.testing.assert_array_equal(table.layers["observed"].toarray(), section.counts.toarray()[:5][:, [2, 0]])
    said = " ".join(result["notes"])
    assert "2 genes are in both; 1 of the maps and 1 of the section are not" in said
    assert "1 of 6 spots have no pixel" in said
    assert "different image files" in said


def test_a_finer_truth_is_brought_to_the_maps(make_maps: Maker, make_section: SectionMaker) -> None:
    """A section of half the pixel size gives the same labels as one on the grid of the maps."""
    maps = open_maps(make_maps())
    fine = compare(maps, make_section(mpp=5.0, shape=(48, 72)))
    np.testing.assert_array_equal(fine.label, compare(maps, make_section()).label)
    assert fine.histograms().shape == (6, 15)


def test_what_does_not_fit_is_refused(make_maps: Maker, make_section: SectionMaker) -> None:
    """A coarser section, another slide, no counts, no shared gene and no spot on the maps raise, saying what to do."""
    maps = open_maps(make_maps())
    with pytest.raises(
        ResolutionError, match=r"must be as fine as the maps .10 um per pixel., got 20; prepare it again"
    ):
        compare(maps, make_section(mpp=20.0, shape=(12, 18)))
    with pytest.raises(AlignmentError, match="360 x 240 um wide and high, got 360 x 480 um"):
        compare(maps, make_section(shape=(48, 36)))
    with pytest.raises(RunError, match=r"must share genes, got none of 3 .of the maps: A, B, C; of the section: X, Y"):
        compare(maps, make_section(genes=("X", "Y")))
    with pytest.raises(AssayError, match="no spot of section S has a pixel"):
        compare(maps, make_section(x_um=np.full(6, 900.0)))
    spots, counts, genes = empty_tables("S")
    whole = make_section()
    alone = Section("S", 10.0, whole.image, whole.tissue, counts, spots, genes, whole.slide)
    with pytest.raises(AssayError, match="section S has no counts to compare with"):
        compare(maps, alone)


def test_out_folder_must_be_possible(make_maps: Maker, truth: Path, tmp_path: Path) -> None:
    """A file in the place of the folder is refused before anything is computed."""
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match=r"folder .*out cannot be made .*choose another name"):
        evaluate_maps(make_maps(), truth, tmp_path / "out")


@pytest.mark.parametrize(("trained", "words"), [(True, "a training section"), (False, "held-out"), (None, "not known")])
def test_the_figure_does_not_call_a_fit_held_out(
    make_maps: Maker, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool | None, words: str
) -> None:
    """The title says whether the run had seen the spots."""
    titles = []
    monkeypatch.setattr(report, "_learn_from_run", lambda *_: (trained, {}, []))
    monkeypatch.setattr(report, "save_figure", lambda figure, path: titles.append(figure.get_suptitle()))
    evaluate_maps(make_maps(), truth, tmp_path / "out")
    assert len(titles) == 1
    assert words in titles[0]
    assert "6 spots, 3 genes" in titles[0]
