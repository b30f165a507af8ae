"""A trained run, opened for prediction: its network, genes and record."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from superst_monai.errors import RunError
from superst_monai.model.objective import FusionVAE

NUMBERS = ("n_genes", "n_sections", "n_metagenes", "depth", "width", "norm", "act", "covariates")
"""Keys of `configs/inference.yaml` that are arguments of the network."""


@dataclass(frozen=True, eq=False)
class Run:
    """What prediction needs of a run folder.

    Attributes:
        path: the folder.
        network: in evaluation mode, on `device`.
        genes: names of the G genes, in the order of the network.
        gene_ids: their ids.
        mpp: um per pixel that the network was trained at.
        record: content of `run.json`.
        weights_sha256: hash of `models/model.pt`, which tells two states of one run apart.
        device: where the network computes.
    """

    path: Path
    network: FusionVAE
    genes: list[str]
    gene_ids: list[str]
    mpp: float
    record: Mapping[str, Any]
    weights_sha256: str
    device: torch.device

    @property
    def covariates(self) -> dict[str, list[str]]:
        """Levels of each covariate that the run knows."""
        return {name: list(levels) for name, levels in self.network.arch.covariates.items()}


def load_run(path: str | Path, *, device: str | torch.device | None = None) -> Run:
    """Open a run folder: build its network and load the weights.

    The configuration is read as plain numbers and the weights as plain tensors: nothing in the folder is executed.

    Args:
        path: folder written by `superst train`.
        device: where to compute; None is the GPU when there is one.

    Raises:
        RunError: it is no run folder, has no weights yet, or its parts do not fit together.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return attach_network(path, load_network(path).to(device=device))


def load_network(path: str | Path) -> FusionVAE:
    """Build the network of a run folder on the CPU and load its weights; raises as `load_run` does."""
    path = Path(path)
    config, _ = read_configuration(path)
    try:
        network = FusionVAE(**{key: config[key] for key in NUMBERS})
    except (TypeError, ValueError, LookupError, RuntimeError) as exc:
        raise RunError(
            f"{path}/configs/inference.yaml must describe a network, but none can be built from it ({exc}); "
            "restore the file from a copy of the run."
        ) from exc
    _load_weights(network, _weights_of(path))
    return network


def attach_network(path: str | Path, network: FusionVAE) -> Run:
    """Make a run of a folder and a network that already has the folder's weights.

    Args:
        path: folder written by `superst train`.
        network: put into evaluation mode and into the memory layout that convolves fastest.

    Raises:
        RunError: the folder is no run folder, or its genes are not those of the network.
    """
    path = Path(path)
    config, record = read_configuration(path)
    genes = read_genes(path / "genes.csv", network.arch.n_genes)
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with _weights_of(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    device = next(network.parameters()).device
    return Run(path, network, list(genes.index), list(genes["gene_id"]), float(config["mpp"]), record, digest, device)


def read_configuration(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the numbers and the record of a run folder; all that is missing is named at once."""
    needed = ("run.json", "genes.csv", "configs/inference.yaml")
    missing = [name for name in needed if not (path / name).is_file()]
    if missing:
        raise RunError(
            f"{path} must be a run folder, but has no {', '.join(missing)}; pass the folder that `superst train` wrote."
        )
    try:
        config: dict[str, Any] = dict(yaml.safe_load((path / "configs" / "inference.yaml").read_text()))
        record: dict[str, Any] = dict(json.loads((path / "run.json").read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as exc:
        raise RunError(f"configs/inference.yaml or run.json of {path} is damaged ({exc}); restore the run.") from exc
    unset = [key for key in (*NUMBERS, "mpp") if config.get(key) is None]
    if unset:
        raise RunError(
            f"{path}/configs/inference.yaml must be filled in, but has no value of {', '.join(unset)}; "
            "pass the folder that `superst train` wrote, not the bundle without weights."
        )
    return config, record


def _weights_of(path: Path) -> Path:
    """The weights of a run that has any."""
    weights = path / "models" / "model.pt"
    if not weights.is_file():
        raise RunError(
            f"{path} must hold weights in models/model.pt, but there are none: training has not reached its first "
            "validation; let it go on, or continue it with `superst train --resume`."
        )
    return weights


def read_genes(path: Path, n_genes: int) -> pd.DataFrame:
    """Names and ids of the genes; as many as the network has."""
    try:
        genes = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("gene")
        faults = [] if "gene_id" in genes else ["no column gene_id"]
    except (KeyError, ValueError) as exc:  # pandas' parser errors are ValueErrors
        raise RunError(f"{path} must be a table with the columns gene, gene_id ({exc}); restore it.") from exc
    if len(genes) != n_genes:
        faults.append(f"{len(genes)} rows for the {n_genes} genes of the network")
    if not genes.index.is_unique:
        faults.append("names that stand twice")
    if faults:
        raise RunError(f"{path} does not fit its run: {'; '.join(faults)}; restore it from a copy of the run.")
    return genes


def _load_weights(network: FusionVAE, path: Path) -> None:
    """Load tensors, and nothing but tensors, that fit the network and are finite."""
    if not zipfile.is_zipfile(path):
        raise RunError(f"{path} is damaged: {path.stat().st_size} bytes that are no archive of tensors; restore it.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # torch lets the unpickler's own error through, which this package must not import
        raise RunError(f"{path} must hold plain tensors and nothing else ({exc}); train again.") from exc
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as exc:
        raise RunError(
            f"{path} does not fit configs/inference.yaml of its run ({exc}); restore both from one copy of the run."
        ) from exc
    bad = [name for name, value in network.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise RunError(
            f"weights must be finite, but {len(bad)} of {path} are not (first: {bad[0]}); "
            "take a checkpoint from before the training diverged."
        )
