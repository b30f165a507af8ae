"""The check of a run folder: every verification of the bundle that needs no network connection, all faults at once."""

from __future__ import annotations

import configparser
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import verify_net_in_out

from superst_monai.engines.run_folder import bundle_folder
from superst_monai.errors import RunError
from superst_monai.inference.calibration import MODES, read_calibration
from superst_monai.inference.colours import in_words, read_colours
from superst_monai.inference.deploy.metadata import metadata_faults
from superst_monai.inference.domain import read_domain
from superst_monai.inference.field_store import read_field
from superst_monai.inference.run import NUMBERS, Run, attach_network, load_network, read_configuration, read_genes

_FILES = (
    *(f"configs/{name}" for name in ("metadata.json", "train.yaml", "inference.yaml", "evaluate.yaml")),
    *(f"configs/{name}" for name in ("multi_gpu_train.yaml", "logging.conf")),
    *("models/model.pt", "genes.csv", "run.json", "docs/README.md", "LICENSE"),
)
_IDS: Mapping[str, tuple[str, ...]] = {
    "train.yaml": ("bundle_root", "device", "dataset_dir", "network_def", "train", "validate", "initialize", "run"),
    "inference.yaml": (
        *("bundle_root", "device", "dataset_dir", "dataset", "network_def", "preprocessing", "inferer"),
        *("postprocessing", "evaluator", "run"),
    ),
    "evaluate.yaml": ("run",),
    "multi_gpu_train.yaml": ("device", "network"),
}
"""Keys that each configuration has: MONAI's properties, and what MONAI Deploy and MONAI Label look for."""


@dataclass(frozen=True)
class Finding:
    """What one verification found.

    Attributes:
        check: its name.
        found: what is there, in a few words.
        faults: what must be mended.
        notes: what should be known.
    """

    check: str
    found: str
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`ok`, `note` or `fault`."""
        return "fault" if self.faults else "note" if self.notes else "ok"


def check_run(path: str | Path) -> list[Finding]:
    """Verify a run folder, offline and without running anything that is written in it.

    Args:
        path: folder written by `superst train`.

    Returns:
        One finding a verification; those that need what is faulty are left out.

    Raises:
        RunError: it is no run folder at all.
    """
    path = Path(path)
    config, record = read_configuration(path)
    missing = [name for name in _FILES if not (path / name).is_file() or not (path / name).stat().st_size]
    findings = [Finding("files", f"{len(_FILES) - len(missing)} of {len(_FILES)}", [f"no {n}" for n in missing])]
    findings += [_configs(path), _numbers(config), _record(config, record)]
    if findings[2].faults:
        return findings
    findings += [_metadata(path, config), _genes(path, config, record), _tried("weights", lambda: _weights(path))]
    metadata, genes, weights = (not finding.faults for finding in findings[-3:])
    if metadata and weights:
        findings.append(_tried("network", lambda: _network(path, config)))
    if genes and weights:
        run = attach_network(path, load_network(path))
        findings += [_tried("domain", lambda: _domain(run)), _tried("calibration", lambda: _calibration(run))]
        findings += [_tried("colours", lambda: _colours(run))]
        findings.append(_fields(run))
    return findings


def require_sound(path: str | Path, findings: list[Finding]) -> None:
    """Refuse a run folder with faults.

    Raises:
        RunError: all faults.
    """
    faults = [f"{finding.check}: {fault}" for finding in findings for fault in finding.faults]
    if faults:
        told = "; ".join(" ".join(fault.rstrip(".").split()) for fault in faults)
        raise RunError(
            f"{path} must be a sound bundle, but has {len(faults)} fault(s): {told}. "
            "Restore what is faulty from a copy of the run, or train again."
        )


def _tried(check: str, look: Callable[[], Finding]) -> Finding:
    """A verification whose error is its finding."""
    try:
        return look()
    except RunError as exc:
        return Finding(check, "refused", [str(exc)])


def _configs(path: Path) -> Finding:
    """Configurations can be read and have their keys."""
    faults = []
    for name, ids in _IDS.items():
        try:
            keys = dict(yaml.safe_load((path / "configs" / name).read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, TypeError, ValueError) as exc:
            faults.append(f"{name} cannot be read ({exc})")
            continue
        absent = [key for key in ids if key not in keys]
        faults += [f"{name} has no {', '.join(absent)}"] if absent else []
    logging = configparser.RawConfigParser()
    try:
        logging.read_string((path / "configs" / "logging.conf").read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error) as exc:
        faults.append(f"logging.conf cannot be read ({exc})")
    else:
        faults += [f"logging.conf has no [{part}]" for part in ("loggers", "handlers") if part not in logging]
    return Finding("configs", f"{len(_IDS) + 1} files", faults)


def _numbers(config: Mapping[str, Any]) -> Finding:
    """The network is that of the bundle, with plain numbers: nothing that is evaluated."""
    sizes = {key: config[key] for key in NUMBERS if key.startswith("n_") or key in {"depth", "width"}}
    faults = [
        f"{key} of inference.yaml must be a whole number above 0, got {value}"
        for key, value in sizes.items()
        if not isinstance(value, int) or value < 1
    ]
    if not isinstance(config["mpp"], int | float) or not config["mpp"] > 0:
        faults.append(f"mpp of inference.yaml must be a positive number, got {config['mpp']}")
    text = json.dumps([config[key] for key in ("norm", "act", "covariates")], default=str)
    if any(sign in text for sign in ("$", "@", "_target_")):
        faults.append("norm, act and covariates of inference.yaml must be plain values")
    shipped = yaml.safe_load((bundle_folder() / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    if config.get("network_def") != shipped["network_def"]:
        faults.append("network_def of inference.yaml is not that of the bundle")
    return Finding("numbers", ", ".join(f"{key} {value}" for key, value in sizes.items()), faults)


def _metadata(path: Path, config: Mapping[str, Any]) -> Finding:
    try:
        about = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
        faults = metadata_faults(about, depth=int(config["depth"]), n_metagenes=int(config["n_metagenes"]))
    except (OSError, ValueError, TypeError) as exc:
        return Finding("metadata", "unreadable", [f"metadata.json cannot be read ({exc})"])
    if faults:
        return Finding("metadata", f"{len(faults)} of MONAI's rules broken", faults)
    needed = {**about["required_packages_version"], "monai": about["monai_version"], "torch": about["pytorch_version"]}
    return Finding("metadata", f"version {about['version']}", notes=_other_versions(needed, "needs"))


def _genes(path: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    try:
        genes = read_genes(path / "genes.csv", int(config["n_genes"]))
    except (RunError, ValueError, TypeError) as exc:
        return Finding("genes", "refused", [str(exc)])
    told = record.get("genes", len(genes))
    faults = [f"run.json tells of {told} genes, genes.csv of {len(genes)}"] if told != len(genes) else []
    return Finding("genes", str(len(genes)), faults)


def _record(config: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    """The record is of this network, and has the hash of each section and the versions."""
    kinds = {"state": str, "seed": int, "genes": int, "sections": list, "versions": dict, "started": str}
    faults = [f"run.json has no {key}" for key, kind in kinds.items() if not isinstance(record.get(key), kind)]
    if record.get("mpp") != config["mpp"]:
        faults.append(f"run.json says {record.get('mpp')} um per pixel, inference.yaml {config['mpp']}")
    if faults:
        return Finding("record", str(record.get("state")), faults)
    named = [section if isinstance(section, Mapping) else {} for section in record["sections"]]
    unhashed = [str(section.get("name")) for section in named if not _is_hash(section.get("sha256"))]
    faults = [f"run.json has no hash of counts and image of section {', '.join(unhashed)}"] if unhashed else []
    if len(named) != config["n_sections"]:
        faults.append(f"run.json tells of {len(named)} sections, inference.yaml of {config['n_sections']}")
    notes = _other_versions({k: v for k, v in record["versions"].items() if k != "python"}, "was trained with")
    if record["state"] != "done":
        notes.append("the training has not ended")
    return Finding("record", f"{record['state']}, {len(named)} section(s)", faults, notes)


def _is_hash(text: Any) -> bool:
    """Whether a text is a SHA-256 in hexadecimal digits."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _other_versions(versions: Mapping[str, str], verb: str) -> list[str]:
    """Packages whose version here is another, or that are not here."""
    notes = []
    for name, wanted in versions.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "none"
        if here.partition("+")[0] != str(wanted).partition("+")[0]:
            notes.append(f"{verb} {name} {wanted}, here is {here}")
    return notes


def _weights(path: Path) -> Finding:
    network = load_network(path)
    state = network.state_dict()
    return Finding("weights", f"{sum(v.numel() for v in state.values()):,} numbers, plain tensors, all finite")


def _network(path: Path, config: Mapping[str, Any]) -> Finding:
    """MONAI's own check, of nothing but the network's plain numbers."""
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "network.json"
        alone.write_text(json.dumps({key: config[key] for key in (*NUMBERS, "network_def")}))
        try:
            verify_net_in_out("network_def", str(path / "configs" / "metadata.json"), str(alone), device="cpu", n=2)
        except ValueError as exc:
            raise RunError(f"verify_net_in_out: {exc}") from exc
    return Finding("network", "verify_net_in_out passes")


def _domain(run: Run) -> Finding:
    domain = read_domain(run)
    if domain is not None:
        return Finding("domain", f"of {domain.n_blocks} blocks")
    if not (run.path / "domain.json").is_file():
        return Finding("domain", "none", notes=["predictions have no guard"])
    return Finding("domain", "of other weights", notes=["domain.json is of other weights: predictions have no guard"])


def _colours(run: Run) -> Finding:
    reading = read_colours(run)
    return Finding("colours", "none" if reading is None else in_words(reading))


def _calibration(run: Run) -> Finding:
    found = {mode: read_calibration(run, mode) for mode in MODES}
    factors = [f"{mode} {calibration.factor:g}" for mode, calibration in found.items() if calibration is not None]
    return Finding("calibration", ", ".join(factors) or "none", notes=[] if factors else ["intervals are as modelled"])


def _fields(run: Run) -> Finding:
    """Every field can be read and has the sizes of the network."""
    arch, faults = run.network.arch, []
    files = sorted((run.path / "fields").glob("*.pt"))
    for file in files:
        try:
            found, belongs = read_field(file)
        except RunError as exc:
            faults.append(str(exc))
            continue
        effects, k = tuple(found.rate_effect.shape), arch.n_metagenes
        if (len(found.mean), effects, belongs.numel()) != (k + 1, (k, arch.n_genes), 32):
            faults.append(
                f"{file.name} must be of {k} metagenes and {arch.n_genes} genes, got a field of {len(found.mean) - 1} "
                f"metagenes with effects {effects}; fit it again with superst fit-section"
            )
    return Finding("fields", str(len(files)), faults)
