"""Withheld spots leave nothing behind but their place, and are scored as told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from superst_monai.analysis.evaluation import lognorm
from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.folder import ExperimentFolder
from superst_monai.experiments.withheld_spots import choose_spots, draw_withheld, score_spots, without_spots
from superst_monai.transforms.labels import spot_labels

MakeSection = Callable[..., Section]


def test_spots_are_withheld_by_share_and_seed() -> None:
    """As many as the share says; the seed decides; neither all nor none."""
    found = draw_withheld(30, 0.2, np.random.default_rng(1))
    assert found.sum() == 6
    np.testing.assert_array_equal(found, draw_withheld(30, 0.2, np.random.default_rng(1)))
    assert (found != draw_withheld(30, 0.2, np.random.default_rng(2))).any()
    for share in (0.01, 0.99):
        with pytest.raises(RunError, match="both to train on and to judge by"):
            draw_withheld(30, share, np.random.default_rng(0))


def test_a_withheld_spot_leaves_its_place_and_nothing_else(make_section: MakeSection) -> None:
    """Its counts are gone whatever they were; its pixels are tissue and of no spot, also where the tissue ended."""
    section = make_section()
    bare = replace(section, tissue=np.zeros_like(section.tissue))
    withheld = np.zeros(section.n_spots, np.bool_)
    withheld[[0, 7, 29]] = True
    kept = without_spots(bare, withheld)
    label = spot_labels(bare)
    np.testing.assert_array_equal(kept.tissue, np.isin(label, [1, 8, 30]))
    assert (spot_labels(kept)[kept.tissue] == 0).all()
    np.testing.assert_array_equal(kept.counts.toarray(), section.counts.toarray()[~withheld])
    assert list(kept.spots.index) == list(section.spots.index[~withheld])
    changed = section.counts.tolil()
    changed[[0, 7, 29]] = 99
    other = without_spots(replace(bare, counts=changed.tocsr()), withheld)
    np.testing.assert_array_equal(other.counts.toarray(), kept.counts.toarray())
    np.testing.assert_array_equal(other.tissue, kept.tissue)


def test_scores_are_those_of_the_judged_spots(
    stores: dict[str, Path], trained: Path, effort: Effort, tmp_path: Path
) -> None:
    """Against numpy, from the predicted spots; genes come by the totals of the whole section."""
    section = read_section(stores["A"])
    folder = ExperimentFolder(tmp_path, "x", {})
    maps = folder.maps("A", trained, section, samples=effort.samples)
    judged = draw_withheld(section.n_spots, 0.5, np.random.default_rng(0))
    got = score_spots(maps, section, judged).set_index("gene")
    spots = maps.spots(choose_spots(section, judged))
    said, seen = np.asarray(spots.X, np.float64), spots.layers["observed"].astype(np.float64)
    said_log, seen_log = lognorm(said), lognorm(seen)
    for column, gene in enumerate(spots.var_names):
        x, y = said[:, column], seen[:, column]
        assert got.loc[gene, "raw"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
        r = np.corrcoef(said_log[:, column], seen_log[:, column])[0, 1]
        assert got.loc[gene, "lognorm"] == pytest.approx(r, abs=1e-5)
        r2 = 1 - ((x - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        assert got.loc[gene, "r2"] == pytest.approx(r2, abs=1e-5)
    totals = np.asarray(section.counts.sum(axis=0)).ravel()
    assert list(got.index) == list(section.genes.index[np.argsort(-totals, kind="stable")])
