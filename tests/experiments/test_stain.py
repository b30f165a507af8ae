"""Stains rescaled: a factor of one changes nothing, glass stays glass, scores are plain correlations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from skimage.color import rgb2hed

from superst_monai.analysis.comparison import compare
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.stain import run_stain, scale_stains
from superst_monai.inference.maps import open_maps
from superst_monai.inference.run import load_run
from superst_monai.inference.slide_map import predict

FACTORS = (0.7, 1.0)
Done = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def done(
    trained: Path, stores: dict[str, Path], effort: Effort, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The experiment on section C with a run of section A."""
    out = tmp_path_factory.mktemp("stain") / "out"
    return out, run_stain(out, [stores["C"]], run=trained, factors=FACTORS, effort=effort)


def test_a_factor_of_one_keeps_every_byte_and_glass_keeps_its_colour(make_section: Any) -> None:
    """Identity at 1; two rescalings are one by the product; bright glass does not darken where the tissue does."""
    section = make_section(seed=3)
    np.testing.assert_array_equal(scale_stains(section, 1.0, 1.0).image, section.image)
    once, twice = scale_stains(section, 0.64, 1.21), scale_stains(scale_stains(section, 0.8, 1.1), 0.8, 1.1)
    assert np.abs(once.image.astype(int) - twice.image.astype(int)).max() <= 4  # two roundings
    darker = scale_stains(section, 1.5, 1.5)
    glass, tissue = darker.image[~section.tissue].astype(float), darker.image[section.tissue].astype(float)
    assert glass.mean() == pytest.approx(section.image[~section.tissue].mean(), abs=2.0)
    assert tissue.mean() < section.image[section.tissue].mean() - 15
    assert darker.counts is section.counts


def test_only_the_stain_that_is_scaled_changes(make_section: Any) -> None:
    """Unmixed by scikit-image against a white ground, haematoxylin is multiplied and eosin stays."""
    section = make_section(seed=3)
    white = section.image.copy()
    white[~section.tissue] = 255
    section = type(section)(**{**vars(section), "image": white})
    before, after = (rgb2hed(s.image)[section.tissue] for s in (section, scale_stains(section, 0.5, 1.0)))
    np.testing.assert_allclose(after[:, 0], 0.5 * before[:, 0], atol=0.01)
    np.testing.assert_allclose(after[:, 1], before[:, 1], atol=0.01)


def test_scores_are_correlations_of_two_predictions(
    done: Done, trained: Path, stores: dict[str, Path], effort: Effort, tmp_path: Path
) -> None:
    """Unscaled the prediction is itself; scaled, a gene's correlation is that of a prediction made by hand."""
    out, result = done
    table = pd.read_csv(out / "stain.csv").set_index(["haematoxylin", "eosin", "gene"])
    same = table.loc[(1.0, 1.0)]
    np.testing.assert_allclose(same[["unscaled_raw", "unscaled_lognorm"]], 1.0)
    section = read_section(stores["C"])
    moments = []
    for i, source in enumerate((scale_stains(section, 0.7, 1.0), section)):
        options = {"samples": effort.samples, "seed": 0, "use_field": False, "tell": lambda _: None}
        store = predict(load_run(trained), source, tmp_path / f"{i}.zarr", **options)
        both = compare(open_maps(store), section)
        moments.append(pd.DataFrame(both.moments(5)[0].astype(float), columns=both.genes))
    scaled, unscaled = moments
    observed = pd.DataFrame(section.counts.toarray(), columns=section.genes.index)
    for gene, row in table.loc[(0.7, 1.0)].iterrows():
        assert row["unscaled_raw"] == pytest.approx(np.corrcoef(scaled[gene], unscaled[gene])[0, 1], abs=1e-5)
        assert row["observed_raw"] == pytest.approx(np.corrcoef(scaled[gene], observed[gene])[0, 1], abs=1e-5)
    [cell] = [c for c in result["cells"] if (c["haematoxylin"], c["eosin"]) == (0.7, 1.0)]
    assert cell["total_ratio"] == pytest.approx(scaled.to_numpy().sum() / unscaled.to_numpy().sum(), rel=1e-5)
    assert cell["medians"]["unscaled_raw"] == pytest.approx(table.loc[(0.7, 1.0)]["unscaled_raw"].median())
    difference = table.loc[(0.7, 1.0)]["observed_raw"] - table.loc[(1.0, 1.0)]["observed_raw"]
    assert cell["tests"]["raw"]["median_difference"] == pytest.approx(difference.median())
    assert [path.name for path in (out / "maps").iterdir()] == ["C.zarr"]


@pytest.mark.usefixtures("no_training")
def test_resuming_gives_the_same_result_without_work(
    done: Done, trained: Path, stores: dict[str, Path], effort: Effort
) -> None:
    """Nothing is predicted again."""
    out, result = done
    assert run_stain(out, [stores["C"]], run=trained, factors=FACTORS, effort=effort) == result


def test_it_trains_where_there_is_no_run(stores: dict[str, Path], effort: Effort, tmp_path: Path, done: Done) -> None:
    """A run of the same sections, seed and options gives the same numbers."""
    found = run_stain(tmp_path / "out", [stores["C"]], train=[stores["A"]], factors=[1.0], effort=effort)
    assert found["cells"] == [c for c in done[1]["cells"] if c["haematoxylin"] == c["eosin"] == 1.0]


def test_what_cannot_be_is_refused(trained: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    """All faults at once, and a section that was trained on."""
    both = r"either a trained run or .*; name at least one test section; factors must lie in \(0, 10\).* got 0, 1"
    with pytest.raises(RunError, match=both):
        run_stain(tmp_path / "out", [], run=trained, train=[stores["B"]], factors=[0.0, 1.0])
    with pytest.raises(RunError, match="A is the training section A"):
        run_stain(tmp_path / "out", [stores["A"]], run=trained)
