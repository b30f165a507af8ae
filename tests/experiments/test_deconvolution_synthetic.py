"""ROC curves are what scikit-learn's areas say, and tables hold what the demo scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from superst_monai.data.store import read_section
from superst_monai.data.synthetic import SUBTYPES, make_tissue
from superst_monai.errors import RunError
from superst_monai.experiments.deconvolution_synthetic import FALSE_RATE, roc, run_deconvolution_synthetic
from superst_monai.experiments.demo import score_maps
from superst_monai.experiments.effort import Effort

SETTINGS: dict[str, Any] = {"tissues": 2, "size_px": 600, "mpp": 6.0, "seed": 4}
Done = tuple[Path, dict[str, Any], Effort]


@pytest.fixture(scope="module")
def done(effort: Effort, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two tissues of 600 um."""
    out, options = tmp_path_factory.mktemp("synthetic") / "out", {"val_share": 0.0, "default_steps": 4}
    effort = replace(effort, options={**effort.options, **options})
    return out, run_deconvolution_synthetic(out, effort=effort, **SETTINGS), effort


def test_curves_of_known_scores() -> None:
    """A perfect score is 1 at once, a reversed one 0 to the end, ties the diagonal; the area is scikit-learn's."""
    rng = np.random.default_rng(0)
    truth, judged = rng.random((50, 60)) < 0.3, rng.random((50, 60)) < 0.8
    np.testing.assert_array_equal(roc(truth.astype(float), truth, judged), 1.0)
    reversed_curve = roc(-truth.astype(float), truth, judged)
    assert (reversed_curve[:-1] == 0).all()
    np.testing.assert_allclose(roc(np.zeros(truth.shape), truth, judged), FALSE_RATE)
    score = truth + rng.normal(0, 1, truth.shape)
    inside, wanted = score[judged], truth[judged]
    area = np.mean(inside[wanted][:, None] > inside[~wanted][None])
    assert np.trapezoid(roc(score, truth, judged), FALSE_RATE) == pytest.approx(area, abs=0.003)


def test_table_holds_the_scores_of_each_tissue(done: Done) -> None:
    """Areas are those of the demo on the maps that are kept; means and bands are over the tissues."""
    out, result, _ = done
    table = pd.read_csv(out / "deconvolution-synthetic.csv")
    assert len(table) == 2 * 3 * 2 * 2
    assert sorted(table["seed"].unique()) == [4, 5]
    tissue = make_tissue(seed=5, size_px=600)
    section = read_section(out / "sections/tissue-1/section.zarr")
    findings = score_maps(out / "maps/tissue-1.zarr", tissue, section)
    mask = tissue.tissue_at(section.mpp)
    cells = mask & np.any([found.truth for found in findings.values()], axis=0)
    for subtype in SUBTYPES[1:]:
        found = findings[subtype]
        rows = table[table["subtype"] == subtype].set_index(["tissue", "pixels", "method"])["auc"]
        wanted = {
            ("tissue", "superst"): found.auc,
            ("tissue", "spots"): found.baseline_auc,
            ("cells", "superst"): found.auc_in_cells,
            ("cells", "spots"): found.baseline_auc_in_cells,
        }
        for (pixels, method), area in wanted.items():
            assert rows[1, pixels, method] == pytest.approx(area)
            both = pd.Series([rows[0, pixels, method], rows[1, pixels, method]])
            said = result["auc"][pixels][method][subtype]
            assert said == pytest.approx({"mean": both.mean(), "sd": both.std(ddof=1)})
            band = result["roc"][pixels][method][subtype]
            assert np.trapezoid(band["mean"], FALSE_RATE) == pytest.approx(both.mean(), abs=0.01)
        curves = [roc(found.mean, found.truth, judged) for judged in (mask, cells)]
        assert [np.trapezoid(c, FALSE_RATE) for c in curves] == pytest.approx([found.auc, found.auc_in_cells], abs=0.01)
    assert "On 2 synthetic tissue(s)" in result["finding"]
    assert (out / "deconvolution-synthetic.png").stat().st_size > 10_000


@pytest.mark.usefixtures("no_training")
def test_resuming_trains_nothing_again(done: Done) -> None:
    """The result is the same, also after a part was lost: its run and maps are still there."""
    out, result, effort = done
    (out / "parts/tissue-1.json").unlink()
    assert run_deconvolution_synthetic(out, effort=effort, **SETTINGS) == result


def test_no_tissue_is_refused(tmp_path: Path) -> None:
    """Before any work."""
    with pytest.raises(RunError, match="tissues must be at least 1, got 0"):
        run_deconvolution_synthetic(tmp_path / "out", tissues=0)
