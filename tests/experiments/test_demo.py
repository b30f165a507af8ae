"""The demo scores maps against the truth, and writes what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import Collection

from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.data.synthetic import SUBTYPES, make_tissue
from superst_monai.errors import RunError
from superst_monai.experiments import demo
from superst_monai.experiments.demo import prepare_tissue, run_demo, score_maps
from superst_monai.experiments.demo_figure import demo_figure
from superst_monai.inference.maps_store import MapsLayout, new_maps
from superst_monai.inference.posterior import Window
from superst_monai.inference.rates import RateSamples

SIZE, MPP, SEED = 600, 5.0, 2


def predict_the_truth(run: object, section: Section, out: Path, *, samples: int, **_: Any) -> Path:
    """Stand-in for a prediction: each subtype is a metagene whose rates are the true ones."""
    tissue = make_tissue(seed=SEED, size_px=SIZE)
    share = np.stack([tissue.truth(k, mpp=MPP) for k in range(4)]).astype(np.float32) / 4  # (K, H, W)
    rate = np.log(tissue.profiles / np.exp(tissue.logits)).astype(np.float32)  # (K, G)
    layout = MapsLayout(
        mpp=MPP,
        tissue=section.tissue,
        tile_px=128,
        rates=RateSamples(np.stack([rate] * samples), np.stack([tissue.logits.astype(np.float32)] * samples), {}),
        log_rate=(rate, np.zeros_like(rate)),
        active=np.ones(4, dtype=bool),
        genes=pd.DataFrame({"gene_id": tissue.genes["gene_id"], "logit": tissue.logits}, index=tissue.genes.index),
        record={"run": None, "slide": {}},
    )
    with new_maps(out, layout) as writer:
        writer.write(Window(0, 0, *section.tissue.shape), np.stack([share] * samples))
    return out


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let training do nothing and the prediction be the truth; what training was called with."""
    called: dict[str, Any] = {}

    def train(sections: list[Path], out: Path, **options: Any) -> Path:
        called.update(options, sections=sections)
        options["show"](1.0, 2.0, 3.0)
        return out

    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo, "load_run", lambda path: path)
    monkeypatch.setattr(demo, "fit_colours", lambda _: None)
    monkeypatch.setattr(demo, "fit_training_fields", lambda _: [])
    monkeypatch.setattr(demo, "calibrate_run", lambda _: {})
    monkeypatch.setattr(demo, "predict", predict_the_truth)
    return called


def test_true_maps_score_1_and_beat_the_baseline(pretend: dict[str, Any], tmp_path: Path) -> None:
    """Maps that are the truth tell the subtypes apart at every pixel, spots spread evenly do not; files say so."""
    shown: list[float] = []
    out = tmp_path / "demo"
    summary = run_demo(
        out,
        minutes=0.5,
        seed=SEED,
        size_px=SIZE,
        mpp=MPP,
        samples=2,
        options={"depth": 3},
        show=lambda *a: shown.extend(a),
    )
    assert set(summary["auc"]) == set(SUBTYPES[1:])
    assert min(summary["auc"].values()) > 0.99
    assert all(0.5 < summary["baseline_auc"][name] < 0.95 for name in SUBTYPES[1:])
    assert json.loads((out / "summary.json").read_text()) == summary
    assert min(summary["auc_in_cells"].values()) > 0.99
    assert all(0.4 < summary["baseline_auc_in_cells"][name] < 0.98 for name in SUBTYPES[1:])
    columns = ("auc", "baseline_auc", "auc_in_cells", "baseline_auc_in_cells")
    row = "| circle | " + " | ".join(f"{summary[c]['circle']:.3f}" for c in columns) + " |"
    assert row in (out / "summary.md").read_text()
    names = {"slide.tif", "section.zarr", "section.png", "maps.zarr", "summary.json", "summary.md", "demo.png"}
    assert {path.name for path in out.iterdir()} == names
    assert shown == [1.0, 2.0, 3.0]
    assert pretend["sections"] == [out / "section.zarr"]
    assert (pretend["minutes"], pretend["seed"], pretend["mpp"], pretend["options"]) == (
        0.5,
        SEED,
        MPP,
        demo.SETTINGS | {"depth": 3},
    )


def test_the_demo_does_not_touch_a_full_folder(tmp_path: Path) -> None:
    """A folder that holds files is refused and left as it was."""
    (tmp_path / "mine").touch()
    with pytest.raises(RunError, match=r"needs a new or empty folder, but .* holds files; choose another"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_baseline_is_the_density_of_the_nearest_spot(tmp_path: Path) -> None:
    """At the centre of a spot the baseline is that spot's observed marker UMIs over its area (against plain sums)."""
    tissue = make_tissue(seed=SEED, size_px=SIZE)
    section = prepare_tissue(tissue, tmp_path, MPP)
    np.testing.assert_array_equal(read_section(tmp_path / "section.zarr").counts.toarray(), tissue.counts.toarray())
    maps = predict_the_truth(None, section, tmp_path / "maps.zarr", samples=1)
    findings = score_maps(maps, tissue, section)
    counts = tissue.counts.toarray()
    for name, finding in findings.items():
        area = np.pi * (section.spots["radius_um"].to_numpy() / MPP) ** 2
        want = counts[:, (tissue.genes["subtype"] == name).to_numpy()].sum(1) / area
        row, col = (section.spots[c].to_numpy() // MPP for c in ("y_um", "x_um"))
        np.testing.assert_allclose(finding.spots, want)
        np.testing.assert_allclose(finding.spread[row.astype(int), col.astype(int)], want)


def test_the_figure_shows_every_subtype(tmp_path: Path) -> None:
    """A row a subtype with truth, spots, prediction, uncertainty and baseline of one window, each with a scale bar."""
    tissue = make_tissue(seed=SEED, size_px=SIZE)
    section = prepare_tissue(tissue, tmp_path, MPP)
    maps = predict_the_truth(None, section, tmp_path / "maps.zarr", samples=1)
    findings = score_maps(maps, tissue, section)
    figure = demo_figure(section, tissue.tissue_at(MPP), findings, window_um=200)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    drawn = [axes for axes in panels if axes.images]
    assert len(drawn) == 2 + 5 * 3
    assert {axes.images[0].get_array().shape[:2] for axes in drawn} == {(120, 120), (40, 40)}
    assert all(any(patch.get_gid() == "scale bar" for patch in axes.patches) for axes in drawn)
    titles = " ".join(axes.get_title() for axes in panels)
    for name in SUBTYPES[1:]:
        assert f"truth: {name} cells" in titles
    assert not any(isinstance(item, Collection) for axes in drawn for item in axes.collections)
