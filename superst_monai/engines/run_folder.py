"""The run folder: a complete bundle with weights, and the record of how they came about."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from superst_monai.engines.budget import Budget
from superst_monai.engines.training_data import TrainingData
from superst_monai.errors import RunError
from superst_monai.model.generative import Architecture
from superst_monai.model.objective import FusionVAE

BUNDLE = "pathology_spatial_expression_fusion"
PACKAGES = ("superst-monai", "torch", "monai", "pyro-ppl", "pytorch-ignite", "numpy", "scikit-learn")


def bundle_folder() -> Path:
    """The bundle without weights that the package ships."""
    return Path(str(resources.files("superst_monai.bundles") / BUNDLE))


class RunFolder:
    """Folder of one training run.

    `configs/` (the bundle's, filled in), `models/model.pt`, `checkpoints/`, `logs/` (TensorBoard), `genes.csv`,
    `metrics.csv`, `metagenes.json` and `run.json`.

    Args:
        path: of the folder; created by `start`.
        resume: continue the run that the folder holds.
        writes: False in a process beside the one that writes; checks and writes nothing.

    Raises:
        RunError: the folder holds a run and `resume` is false, or holds none and `resume` is true.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, writes: bool = True) -> None:
        self.path = Path(path)
        self.resume = resume
        self.writes = writes
        if not writes:
            return
        record = self.path / "run.json"
        if resume and not record.exists():
            raise RunError(f"--resume continues a run, but {self.path} holds none (no run.json); leave --resume out.")
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"a run is a folder, but {self.path} is a file; name another --out.")
        if not resume and self.path.exists() and any(self.path.iterdir()):
            raise RunError(f"{self.path} must be empty or new for a run; continue it with --resume, or name another.")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def models(self) -> Path:
        """Folder of the weights."""
        return self.path / "models"

    @property
    def logs(self) -> Path:
        """Folder of the TensorBoard logs."""
        return self.path / "logs"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        found = sorted(self.checkpoints.glob("checkpoint_*.pt"), key=lambda p: int(p.stem.rpartition("=")[2]))
        return found[-1] if found else None

    def start(self, data: TrainingData, network: FusionVAE, settings: Mapping[str, Any]) -> None:
        """Lay out the folder before the first step, so that even a killed run can be read.

        Args:
            data: what is trained on.
            network: what is trained.
            settings: top-level keys of the training configuration, as given.
        """
        if not self.writes:
            return
        for folder in (self.models, self.checkpoints, self.logs, self.path / "configs"):
            folder.mkdir(parents=True, exist_ok=True)
        if self.resume:
            return
        for name in ("docs", "LICENSE"):
            _copy(bundle_folder() / name, self.path / name)
        _write(self.path / "genes.csv", data.genes.to_csv())
        self._write_configs(data, network, settings)
        self._write_record({"state": "running", "seed": data.seed, **_inputs(data), "versions": versions()})

    def save_weights(self, network: nn.Module) -> None:
        """Write `models/model.pt`, tensors only, whole or not at all."""
        scratch = self.models / ".model.pt.part"
        torch.save(network.state_dict(), scratch)
        os.replace(scratch, self.models / "model.pt")

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder whole or not at all."""
        _write(self.path / name, text)

    def finish(self, budget: Budget, trainer_state: Any) -> None:
        """Complete the record once training has ended."""
        if not self.writes:
            return
        record = json.loads((self.path / "run.json").read_text())
        record |= {
            "state": "done",
            "seconds": round(budget.spent_s, 2),
            "epochs": trainer_state.epoch,
            "steps": trainer_state.iteration,
        }
        self._write_record(record)

    def _write_record(self, record: Mapping[str, Any]) -> None:
        _write(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    def _write_configs(self, data: TrainingData, network: FusionVAE, settings: Mapping[str, Any]) -> None:
        arch = network.arch
        numbers: dict[str, Any] = {
            "n_genes": arch.n_genes,
            "n_sections": arch.n_sections,
            "n_metagenes": arch.n_metagenes,
            "depth": arch.depth,
            "width": arch.width,
            "norm": arch.norm,
            "act": arch.act,
            "covariates": {c: list(levels) for c, levels in arch.covariates.items()},
            "mpp": float(data.mpp),
        }
        source = bundle_folder() / "configs"
        given = dict(settings) | {"sections": data.paths}
        for name, values in (("train.yaml", given), ("inference.yaml", numbers), ("evaluate.yaml", numbers)):
            filled = yaml.safe_load((source / name).read_text())
            filled |= {key: value for key, value in values.items() if key in filled}
            _write(self.path / "configs" / name, yaml.safe_dump(filled, sort_keys=False))
        about = _fit_metadata(json.loads((source / "metadata.json").read_text()), arch)
        _write(self.path / "configs" / "metadata.json", json.dumps(about, indent=4, ensure_ascii=False) + "\n")
        for name in ("multi_gpu_train.yaml", "logging.conf"):
            _copy(source / name, self.path / "configs" / name)


def _fit_metadata(about: dict[str, Any], arch: Architecture) -> dict[str, Any]:
    """The bundle's metadata with the sizes of this run's network."""
    sides = [f"{2 ** (arch.depth - 1)}*n"] * 2
    data = about["network_data_format"]
    data["inputs"]["image"]["spatial_shape"] = sides
    channels = {str(k): f"metagene {k + 1}" for k in range(arch.n_metagenes)}
    data["outputs"]["pred"] |= {"spatial_shape": sides, "num_channels": arch.n_metagenes, "channel_def": channels}
    return about


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape the result."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def _inputs(data: TrainingData) -> dict[str, Any]:
    """Name, slide and hash of the counts of each section, and what was taken from them."""
    sections = []
    for section, path, counts in zip(data.sections, data.paths, data.counts, strict=True):
        digest = hashlib.sha256()
        for part in (counts.data, counts.indices, counts.indptr, section.image):
            digest.update(np.ascontiguousarray(part).tobytes())
        sections.append(
            {
                "name": section.name,
                "path": path,
                "sha256": digest.hexdigest(),
                "slide": section.slide.get("sha256"),
                "spots": section.n_spots,
            }
        )
    return {
        "mpp": float(data.mpp),
        "genes": data.n_genes,
        "n_patches": data.n_patches,
        "covariates": {
            c: {s.name: v for s, v in zip(data.sections, found, strict=True)} for c, found in data.levels.items()
        },
        "covariate_columns": data.covariate_columns,
        "sections": sections,
        "held_out_spots": [sum(map(len, blocks)) for blocks in data.held_out],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "threads": torch.get_num_threads(),
    }


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text)
    os.replace(scratch, path)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, over what is there."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
