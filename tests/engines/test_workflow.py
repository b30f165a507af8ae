"""Training through the bundle: same seed same weights, resume after a kill, every door the same run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from superst_monai.engines.run_folder import bundle_folder
from superst_monai.engines.workflow import train
from superst_monai.errors import RunError, TrainingError
from superst_monai.model.objective import PARTS

SMALL: dict[str, Any] = {
    "n_metagenes": 3,
    "depth": 3,
    "width": 4,
    "patch_px": 32,
    "batch_size": 2,
    "min_counts": 1,
    "val_every_steps": 10,
}


def weights(run: Path, name: str = "models/model.pt") -> dict[str, torch.Tensor]:
    """Stored tensors of a run."""
    found: dict[str, torch.Tensor] = torch.load(run / name, weights_only=True)
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights agree bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def finished(stores, tmp_path_factory) -> Path:
    """A run of four epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return train(stores, out, covariates={"section": "section"}, epochs=4, seed=3, options=SMALL)


def test_the_run_folder_is_a_complete_record(finished, stores):
    """Configurations, genes, metrics of each epoch, versions and hashes of the input are on disk; nothing in Pyro."""
    record = json.loads((finished / "run.json").read_text())
    assert (record["state"], record["seed"], record["epochs"], record["steps"]) == ("done", 3, 4, 40)
    assert [s["path"] for s in record["sections"]] == [str(s) for s in stores]
    assert record["covariates"] == {"section": {"A": "A", "B": "B"}}
    assert record["held_out_spots"] == [3, 3]
    assert len({s["sha256"] for s in record["sections"]}) == 2
    assert record["versions"]["torch"] == torch.__version__
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["epoch"]) for r in rows] == [1, 2, 3, 4]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[p]) for p in PARTS), rel=1e-4)
        assert float(row["val_loglik_per_spot"]) < float(row["val_loglik_umis_per_spot"]) < 0
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert (finished / "genes.csv").read_text().splitlines()[:2] == ["gene,gene_id", "G0,ENS0"]
    assert list(finished.glob("logs/events*"))
    assert not list(pyro.get_param_store().keys())


def test_same_seed_same_weights(finished, stores, tmp_path):
    """A second run with the same seed ends with the same bits, one with another seed does not."""
    options = {"covariates": {"section": "section"}, "epochs": 4, "options": SMALL}
    again = train(stores, tmp_path / "again", seed=3, **options)
    other = train(stores, tmp_path / "other", seed=4, **options)
    assert same(weights(finished), weights(again))
    assert not same(weights(finished), weights(other))


KILLED = """
import os, signal, sys
from superst_monai.engines.workflow import train
import superst_monai.engines.handlers as handlers

def die(engine):
    if engine.state.iteration == 25:
        os.kill(os.getpid(), signal.SIGKILL)

add = handlers.MetricsLog._add
handlers.MetricsLog._add = lambda self, engine: (add(self, engine), die(engine))
train(sys.argv[2:], sys.argv[1], covariates={"section": "section"}, epochs=4, seed=3, options=%r)
"""


def test_a_run_killed_in_mid_epoch_resumes_to_the_same_weights(finished, stores, tmp_path):
    """After kill -9 at step 25 of 40, --resume ends with the weights and metrics of the uninterrupted run."""
    out = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED % SMALL, str(out), *map(str, stores)],
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    assert json.loads((out / "run.json").read_text())["state"] == "running"
    train([], out, resume=True)
    assert same(weights(finished), weights(out))
    assert json.loads((out / "run.json").read_text())["state"] == "done"
    columns = ("epoch", "step", "loss", *PARTS, "val_loglik_per_spot", "val_loglik_umis_per_spot")
    tables = []
    for run in (finished, out):
        with (run / "metrics.csv").open() as file:
            tables.append([[row[c] for c in columns] for row in csv.DictReader(file)])
    assert tables[0] == tables[1]


def test_monai_bundle_run_gives_the_same_weights(finished, stores, tmp_path):
    """`python -m monai.bundle run` from another directory is the same training."""
    bundle = bundle_folder()
    given = SMALL | {
        "sections": [str(s) for s in stores],
        "covariates": {"section": "section"},
        "epochs": 4,
        "seed": 3,
        "run_dir": str(tmp_path / "bundle"),
    }
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += [
        "--config_file",
        str(bundle / "configs/train.yaml"),
        "--meta_file",
        str(bundle / "configs/metadata.json"),
    ]
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert same(weights(finished), weights(tmp_path / "bundle"))


def test_the_run_folder_is_a_bundle_that_verifies(finished, tmp_path):
    """MONAI's own check of the network's input and output passes on a run, whose weights are plain tensors."""
    command = [sys.executable, "-m", "monai.bundle", "verify_net_in_out", "--net_id", "network_def", "--n", "2"]
    command += ["--config_file", str(finished / "configs/inference.yaml")]
    command += ["--meta_file", str(finished / "configs/metadata.json")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert all(isinstance(v, torch.Tensor) for v in weights(finished).values())
    about = json.loads((finished / "configs/metadata.json").read_text())["network_data_format"]
    assert about["outputs"]["pred"]["num_channels"] == 3
    assert about["inputs"]["image"]["spatial_shape"] == ["4*n", "4*n"]


def test_without_validation_the_last_weights_are_kept(stores, tmp_path):
    """Shares of zero train on every UMI of every spot; the model is that of the last checkpoint."""
    out = train(stores[:1], tmp_path / "run", epochs=2, options=SMALL | {"val_share": 0.0, "val_umis": 0.0})
    last = weights(out, "checkpoints/checkpoint_epoch=2.pt")["average"]
    assert same(weights(out), last)
    assert json.loads((out / "run.json").read_text())["held_out_spots"] == [0]


def test_minutes_end_the_training(stores, tmp_path):
    """With a budget of wall-clock alone the run ends soon after it, complete."""
    out = train(stores[:1], tmp_path / "run", minutes=0.03, options=SMALL)
    record = json.loads((out / "run.json").read_text())
    assert record["state"] == "done"
    assert 1.8 <= record["seconds"] < 6.0
    assert weights(out)


def test_nan_stops_with_the_last_good_checkpoint(stores, tmp_path, monkeypatch):
    """A loss that becomes NaN raises, names step and batch, and leaves finite weights behind."""
    from superst_monai.engines import handlers

    check = handlers.FiniteGuard.check_loss

    def poison(self, engine):
        if engine.state.iteration == 15:
            engine.state.output["loss"] = engine.state.output["loss"] * float("nan")
        check(self, engine)

    monkeypatch.setattr(handlers.FiniteGuard, "check_loss", poison)
    message = r"became nan at step 15 \(epoch 2, patches of sections \[0, 0\];.*checkpoints/.*--resume"
    with pytest.raises(TrainingError, match=message):
        train(stores[:1], tmp_path / "run", epochs=4, options=SMALL)
    kept = weights(tmp_path / "run", "checkpoints/checkpoint_epoch=1.pt")["network"]
    assert all(torch.isfinite(v).all() for v in kept.values() if v.is_floating_point())


def test_what_cannot_be_trained_is_refused(finished, stores, tmp_path):
    """Unknown options, used folders and empty resumes are named before anything is written."""
    with pytest.raises(RunError, match="has no colour, sie"):
        train(stores, tmp_path / "a", epochs=1, options={"sie": 1, "colour": 2})
    with pytest.raises(RunError, match="must be empty or new"):
        train(stores, finished, epochs=1, options=SMALL)
    with pytest.raises(RunError, match=r"settings of the run, but n_metagenes was 3, got 5; seed was 3, got 4"):
        train(stores, finished, seed=4, resume=True, options={"n_metagenes": 5})
    with pytest.raises(RunError, match="holds none"):
        train([], tmp_path / "none", resume=True)
    assert not (tmp_path / "a").exists()
