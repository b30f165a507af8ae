"""Hold-out: numbers against plain ones, and splits that would not measure a prediction are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from superst_monai.data.section import Section, empty_tables
from superst_monai.data.store import read_section, write_section
from superst_monai.errors import AssayError, RunError
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.holdout import run_holdout
from superst_monai.experiments.holdout_figure import holdout_figure
from superst_monai.experiments.holdout_splits import (
    Split,
    leave_one_patient_out,
    leave_one_section_out,
    one_split,
)
from superst_monai.experiments.paired import paired_test
from superst_monai.inference.maps import open_maps

Stores = dict[str, Path]


@pytest.fixture(scope="module")
def done(stores: Stores, effort: Effort, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The experiment with each patient left out once."""
    out = tmp_path_factory.mktemp("holdout") / "out"
    splits = leave_one_patient_out(list(stores.values()), patient="patient")
    return out, run_holdout(out, splits, effort=effort)


def test_each_section_is_predicted_by_a_run_without_its_patient(done: tuple[Path, Any]) -> None:
    """Two trainings, three predictions, none with the counts of what is predicted."""
    out, result = done
    assert [run["sections"] for run in result["runs"]] == [["C"], ["A", "B"]]
    assert [(s["section"], s["split"], s["patient_in_training"]) for s in result["sections"]] == [
        ("A", "p1", False),
        ("B", "p1", False),
        ("C", "p2", False),
    ]
    for section in result["sections"]:
        record = open_maps(out / "maps" / f"{section['split']}-{section['section']}.zarr").record
        assert record["field"] is None
        said = json.loads((out / f"evaluations/{section['split']}-{section['section']}/evaluation.json").read_text())
        assert said["trained_on_truth"] is False


def test_scores_are_those_of_the_predicted_counts(done: tuple[Path, Any], stores: Stores) -> None:
    """Correlation and R2 of a gene against plain formulas, of the model and of the training sections' mean."""
    out, result = done
    table = pd.read_csv(out / "holdout.csv").set_index(["section", "gene"])
    spots = anndata.read_h5ad(out / "evaluations/p2-C/predicted.h5ad").to_df()
    observed = pd.DataFrame(read_section(stores["C"]).counts.toarray(), columns=[f"G{i}" for i in range(12)])
    trained = np.concatenate([read_section(stores[name]).counts.toarray() for name in "AB"])
    assert len(table) == 36
    for i, gene in enumerate(observed):
        row, seen, said = table.loc[("C", gene)], observed[gene].to_numpy(), spots[gene].to_numpy(dtype=float)
        assert row["model_raw"] == pytest.approx(np.corrcoef(said, seen)[0, 1], abs=1e-5)
        for prediction, score in ((said, row["model_r2"]), (trained[:, i].mean(), row["gene_mean_r2"])):
            spread = ((seen - seen.mean()) ** 2).sum()
            assert score == pytest.approx(1 - ((prediction - seen) ** 2).sum() / spread, abs=1e-5)
        assert row["total"] == seen.sum()
        assert row["predicted_total"] == pytest.approx(said.sum(), rel=1e-5)
        assert np.isnan(row["gene_mean_raw"])
    mine, said = table.loc["C"], result["sections"][2]
    assert mine["top100"].all()
    assert said["lognorm"]["model"] == pytest.approx(mine["model_lognorm"].median())
    assert said["r2"]["gene_mean"] == pytest.approx(mine["gene_mean_r2"].median())
    assert said["raw"]["gene_mean"] is None
    wanted = paired_test(mine["model_raw"], mine["image_intensity_raw"])
    assert said["tests"]["raw"]["image_intensity"] == pytest.approx(wanted)
    assert said["tests"]["raw"]["gene_mean"] == {"n": 0, "median_difference": None, "p": None}
    assert said["total_ratio"] == pytest.approx(float(spots.to_numpy().sum() / observed.to_numpy().sum()), rel=1e-5)
    medians = [section["raw"]["model"] for section in result["sections"]]
    assert result["medians"]["raw"]["model"] == pytest.approx(np.median(medians))
    assert f"{np.median(medians):.3f} raw" in result["finding"]


@pytest.mark.usefixtures("no_training")
def test_resuming_gives_the_same_result_without_work(done: tuple[Path, Any], stores: Stores, effort: Effort) -> None:
    """A second start trains and predicts nothing and writes the same JSON; other settings are refused."""
    out, result = done
    before = (out / "holdout.json").read_bytes()
    splits = leave_one_patient_out(list(stores.values()), patient="patient")
    assert run_holdout(out, splits, effort=effort) == result
    assert (out / "holdout.json").read_bytes() == before
    with pytest.raises(RunError, match="whose seed was 0, got 1"):
        run_holdout(out, splits, effort=effort, seed=1)


def test_a_leaking_patient_is_refused_unless_asked_for(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections of one patient on both sides are named; allowed, the result would say so; unknown patients pass."""
    splits = leave_one_section_out(list(stores.values()), patient="patient")
    assert [split.shared_patients for split in splits] == [["p1"], ["p1"], []]
    with pytest.raises(RunError, match=r"must not be in training, but p1 \(A\); p1 \(B\) would be"):
        run_holdout(tmp_path / "out", splits)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("superst_monai.experiments.folder.train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(pytest.fail.Exception, match="trained"):
        run_holdout(tmp_path / "out", splits, same_patient=True)
    assert [s.shared_patients for s in leave_one_section_out(list(stores.values()))] == [[], [], []]


def test_a_section_is_never_on_both_sides(stores: Stores, tmp_path: Path, make_section: Any) -> None:
    """The same image file under another name is the same section; all of them are named, before any training."""
    other = tmp_path / "renamed.zarr"
    section = make_section("renamed", seed=5)
    section.slide["sha256"] = read_section(stores["A"]).slide["sha256"]
    write_section(section, other)
    with pytest.raises(RunError, match=r"renamed is the training section A; take it out"):
        run_holdout(tmp_path / "out", one_split([stores["A"], stores["B"]], [other]), same_patient=True)
    with pytest.raises(AssayError, match=r"A is the name of several; leave one out"):
        one_split([stores["A"]], [stores["A"]])


def test_designs_that_leave_nothing_are_refused(stores: Stores, tmp_path: Path) -> None:
    """A split needs both sides; a patient must be known."""
    with pytest.raises(RunError, match="got 1, without either: p2; name more sections, or of more patients"):
        run_holdout(tmp_path / "out", leave_one_patient_out([stores["C"]], patient="patient"))
    with pytest.raises(RunError, match=r"there must be splits .* got 0, without either: none"):
        run_holdout(tmp_path / "out", [])
    with pytest.raises(RunError, match=r"patient in the column donor of its spots, but A names none; B names none"):
        leave_one_patient_out([stores["A"], stores["B"]], patient="donor")
    assert one_split([stores["A"]], [stores["C"]])[0] == Split("split", *_entries(stores))


def test_a_slide_alone_cannot_be_compared(make_section: Any, tmp_path: Path) -> None:
    """Every section of an experiment was measured."""
    whole = make_section("bare")
    spots, counts, genes = empty_tables("bare")
    path = tmp_path / "bare.zarr"
    write_section(Section("bare", whole.mpp, whole.image, whole.tissue, counts, spots, genes, whole.slide), path)
    with pytest.raises(AssayError, match=r"measured sections of different names, but bare \(.*\) has no counts"):
        leave_one_patient_out([path], patient="patient")


def test_names_of_many_sections_are_turned(done: tuple[Path, Any]) -> None:
    """From four sections on; each has three boxes a panel but where a constant has no correlation."""
    table = pd.read_csv(done[0] / "holdout.csv")
    four = pd.concat([part.assign(section=f"{n}{i}") for i in range(2) for n, part in table.groupby("section")])
    pair = {kind: (np.array([0.0, 3.0]), np.array([1.0, 2.0])) for kind in ("raw", "lognorm")}
    figure = holdout_figure(four, [pair])
    panels = [axes for axes in figure.axes if any(p.get_gid() == "box" for p in axes.patches)]
    assert [sum(p.get_gid() == "box" for p in axes.patches) for axes in panels] == [12, 12, 18]
    assert [t.get_text() for t in panels[0].texts] == ["none"] * 6
    figure.canvas.draw()
    assert {label.get_rotation() for axes in panels for label in axes.get_xticklabels()} == {90.0}


def _entries(stores: Stores) -> tuple[Any, Any]:
    """What is known of A and C without their patients."""
    whole = leave_one_section_out([stores["A"], stores["C"]])
    return whole[1].train, whole[0].train
