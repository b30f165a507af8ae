"""The recalibration of a run: fitted on withheld spots, kept in the run folder, and part of every law of counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.sparse import csr_matrix

from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.engines.holdout import withheld_spots
from superst_monai.errors import RunError
from superst_monai.inference import calibrate as module
from superst_monai.inference.calibrate import calibrate_run
from superst_monai.inference.calibration import FILE, Calibration, in_words, read_calibration, to_json
from superst_monai.inference.derived import without_calibration
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.section_field import fit_field
from superst_monai.inference.slide_map import predict
from superst_monai.model.dispersion import interval_coverage

MakeRun = Callable[..., Path]
MakeSection = Callable[..., Section]
GENES = tuple(f"g{i}" for i in range(60))
TRUTH = 6.0  # factor by which the dispersion of the counts exceeds that of the run


def counts_of(maps: Maps, section: Section, rng: np.random.Generator) -> np.ndarray:
    """Counts of the section's spots `(S, G)` of the law of the maps, each of a posterior sample of its own."""
    law = maps.sum_over(maps.spot_label(section), n_supports=section.n_spots).dispersed(TRUTH)
    chosen = rng.integers(maps.n_samples, size=law.mean.shape)
    size = np.take_along_axis(law.total_count, chosen[None], axis=0)[0]
    odds = np.exp(law.logits[chosen, np.arange(len(law.genes))])
    return rng.poisson(rng.standard_gamma(size) * odds)


def record_training(path: Path, stores: list[Path], sections: list[Section], share: float = 0.5) -> None:
    """Say in a run folder what it was trained on."""
    config = yaml.safe_load((path / "configs" / "train.yaml").read_text()) | {"val_share": share}
    (path / "configs" / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    blocks = withheld_spots([s.spots[["x_um", "y_um"]].to_numpy() for s in sections], share, seed=3)
    known = zip(sections, stores, strict=True)
    record = json.loads((path / "run.json").read_text()) | {
        "seed": 3,
        "sections": [{"name": s.name, "path": str(store), "spots": s.n_spots} for s, store in known],
        "held_out_spots": [sum(map(len, found)) for found in blocks],
    }
    (path / "run.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def truth(make_run: MakeRun, make_section: MakeSection, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run, a section in its training whose counts vary TRUTH times as much as the run says, and fresh counts of it.

    The counts are of a prediction by another seed than that of the calibration: the same law, other samples.
    """
    folder = tmp_path_factory.mktemp("calibrated")
    path = make_run(folder / "run", genes=GENES)
    section, rng = make_section(genes=GENES), np.random.default_rng(0)
    maps = open_maps(predict(load_run(path), section, folder / "other.zarr", samples=40, seed=8, use_field=False))
    seen, fresh = (replace(section, counts=csr_matrix(counts_of(maps, section, rng).astype(np.int32))) for _ in "ab")
    write_section(seen, folder / "C2.zarr")
    record_training(path, [folder / "C2.zarr"], [seen])
    return {"path": path, "seen": seen, "fresh": fresh}


@pytest.fixture(scope="module")
def found(truth: dict[str, Any]) -> dict[str, Calibration]:
    """What calibrating the run returns; fields are fitted in few steps."""
    shown: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit_field", lambda *args, **given: fit_field(*args, **given, steps=5))
        result = calibrate_run(truth["path"], show=lambda share, _: shown.append(share))
    assert shown == sorted(shown)
    assert shown[-1] == pytest.approx(1.0)
    return result


def test_intervals_of_withheld_and_fresh_counts_become_right(
    truth: dict[str, Any], found: dict[str, Calibration], tmp_path: Path
) -> None:
    """The factor makes 90 % of the withheld counts lie within, and 88 to 92 % of counts that were never seen."""
    histology = found["histology"]
    assert histology.n_spots == 28
    assert histology.before["all"] < 0.87
    assert histology.after["all"] == pytest.approx(0.9, abs=1e-3)  # 60 genes: all are among the highest
    assert found["field"].after["all"] == pytest.approx(0.9, abs=1e-3)
    run = load_run(truth["path"])
    out = predict(run, truth["fresh"], tmp_path / "maps.zarr", seed=1, use_field=False, tell=lambda _: None)
    maps = open_maps(out)
    assert maps.record["calibration"] == {"mode": "histology", "factor": histology.factor}
    assert maps.record["counts_used"] is False
    assert maps.dispersion == histology.factor
    label, counts = maps.spot_label(truth["fresh"]), truth["fresh"].counts.toarray()
    laws = (maps.sum_over(label), without_calibration(maps).sum_over(label))
    after, before = (interval_coverage(counts, law.total_count, law.logits[:, None], 0.9) for law in laws)
    assert before < 0.87
    assert 0.88 <= after <= 0.92


def test_the_run_folder_holds_what_was_found_and_nothing_else(
    truth: dict[str, Any], found: dict[str, Calibration]
) -> None:
    """Each mode is read back, as long as the weights are those that it is of; no scratch and no field is left."""
    run = load_run(truth["path"])
    assert read_calibration(run, "histology") == found["histology"]
    assert read_calibration(run, "field") == found["field"]
    assert read_calibration(replace(run, weights_sha256="0"), "field") is None
    assert not (run.path / "fields").exists()
    assert not list(run.path.glob(".*"))


def test_expectations_do_not_feel_the_factor_and_pixels_still_add(
    truth: dict[str, Any], found: dict[str, Calibration], tmp_path: Path
) -> None:
    """Means and their intervals are those before, counts spread more, and supports add in each sample."""
    maps = open_maps(
        predict(load_run(truth["path"]), truth["seen"], tmp_path / "m.zarr", samples=3, tell=lambda _: None)
    )
    before = without_calibration(maps)
    assert before.dispersion == 1.0
    label = maps.spot_label(truth["seen"])
    law, raw = maps.sum_over(label, GENES[:5]), before.sum_over(label, GENES[:5])
    np.testing.assert_allclose(law.mean, raw.mean, rtol=1e-5)
    np.testing.assert_allclose(law.mean_interval(0.9), raw.mean_interval(0.9), rtol=1e-4)
    assert (law.sd > raw.sd).all()
    together = maps.sum_over((label > 0).astype(int), GENES[:5])
    np.testing.assert_allclose(law.total_count.sum(1), together.total_count[:, 0], rtol=1e-4)
    np.testing.assert_array_equal(maps.gene("g0")[0], before.gene("g0")[0])


def test_maps_of_a_run_without_a_factor_read_as_1_and_say_so(run: Run, section: Section, tmp_path: Path) -> None:
    """The prediction tells that intervals are not recalibrated; a record that knows no such key has factor 1."""
    said: list[str] = []
    maps = open_maps(predict(run, section, tmp_path / "maps.zarr", samples=2, tell=said.append))
    assert any("not recalibrated: the run has no calibration.json" in text for text in said)
    assert maps.record["calibration"] is None
    maps.record.pop("calibration")
    assert maps.dispersion == 1.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"share": 0.0}, "the training withheld no spots (--val-share)"),
        ({"share": 0.1}, "the training withheld 6 spots, and fewer than 10 tell too little"),
        ({"gone": True}, "C2 of the training cannot be found"),
        ({"spots": 55}, "the sections have other spots than in the training"),
    ],
)
def test_where_withheld_spots_are_not_known_nothing_is_written(
    make_run: MakeRun, make_section: MakeSection, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    """It is said why, and a factor of former weights does not stay."""
    path, section = make_run(tmp_path / "run"), make_section()
    store = tmp_path / "C2.zarr"
    if not change.get("gone"):
        write_section(section, store)
    record_training(path, [store], [section], change.get("share", 0.5))
    if "spots" in change:
        record = json.loads((path / "run.json").read_text())
        record["sections"][0]["spots"] = change["spots"]
        (path / "run.json").write_text(json.dumps(record))
    (path / FILE).write_text("{}")
    said: list[str] = []
    assert calibrate_run(path, tell=said.append) == {}
    assert not (path / FILE).exists()
    [text] = said
    assert text == f"the intervals of counts stay as the model has them, without a check: {reason}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "calibration.json is damaged"),
        ('{"level": 0.9}', "calibration.json is damaged .*weights_sha256"),
        ('{"weights_sha256": "HASH", "field": {"factor": 2}}', "calibration.json is damaged"),
        ('{"weights_sha256": "HASH", "field": {"factor": -1, "n_spots": 3, "before": {}, "after": {}}}', "got -1"),
    ],
)
def test_damaged_files_are_refused(run: Run, tmp_path: Path, text: str, reason: str) -> None:
    """What cannot be read is not taken for a factor of 1."""
    (tmp_path / FILE).write_text(text.replace("HASH", run.weights_sha256))
    with pytest.raises(RunError, match=reason):
        read_calibration(replace(run, path=tmp_path), "field")


def test_it_is_said_in_words(run: Run, tmp_path: Path) -> None:
    """Coverage before and after, of which counts, and the factor; a mode that was not calibrated is none."""
    found = Calibration(2.5, 37, {"top100": 0.79, "all": 0.88}, {"top100": 0.9, "all": 0.895})
    assert in_words("field", found) == (
        "90 % intervals with a section's field cover, of the counts of 37 withheld spots, 79.0 % before and 90.0 % "
        "after (the 100 genes expected highest), 88.0 % before and 89.5 % after (all genes) recalibration by the "
        "factor 2.5"
    )
    (tmp_path / FILE).write_text(to_json({"field": found}, run.weights_sha256))
    here = replace(run, path=tmp_path)
    assert read_calibration(here, "field") == found
    assert read_calibration(here, "histology") is None
