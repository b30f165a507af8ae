"""Write a run's network, image to scaled activity at the posterior mean, as a file that needs none of this package."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from superst_monai.data.atomic import scratch_folder
from superst_monai.errors import RunError, StoreError
from superst_monai.inference.deploy.formats import FORMATS, About, Format, multiple_of
from superst_monai.inference.deploy.manual import gene_table, manual
from superst_monai.inference.run import Run
from superst_monai.model.objective import FusionVAE

TOLERANCE = 1e-4
"""Largest difference from the run's network that an export may have: absolute [1/px], and as a share of the largest
activity."""


@dataclass(frozen=True)
class Agreement:
    """How an exported network compares with that of the run.

    Attributes:
        shape: of the random image that both were run on, another than the export was traced with, `(B, 3, H, W)`.
        absolute: largest difference [1/px].
        relative: the same as a share of the largest activity.
    """

    shape: tuple[int, ...]
    absolute: float
    relative: float


def export_network(run: Run, out: str | Path, *, format: str, overwrite: bool = False) -> Agreement:
    """Write the network, a manual of how to use it beside it (`OUT.json`), and its genes (`OUT.genes.csv`).

    Args:
        run: of `load_run`.
        out: file to write; its suffix is the format.
        format: one of `formats.FORMATS`.
        overwrite: replace files of these names.

    Returns:
        How the exported network agrees with the run's.

    Raises:
        RunError: there is no such format, the suffix is another, libraries are missing, the bundle's metadata cannot be
            read, or the export does not agree.
        StoreError: a name is taken, or a file cannot be written.
    """
    out = Path(out)
    chosen = _chosen(format, out)
    files = {kind: out.with_name(out.name + suffix) for kind, suffix in (("genes", ".genes.csv"), ("manual", ".json"))}
    taken = [str(path) for path in (out, *files.values()) if path.exists() or path.is_symlink()]
    if taken and not overwrite:
        raise StoreError(f"{', '.join(taken)} must not exist yet; choose another name or pass --overwrite.")
    about = _about(run.path / "configs")
    network = copy.deepcopy(run.network).cpu().requires_grad_(False)
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    content = chosen.make(network, about)
    agreement = compare(network, chosen, content)
    with scratch_folder(out) as folder:
        (folder / "network").write_bytes(content)
        gene_table(run).to_csv(folder / "genes")
        said = manual(run, content, about["metadata"], file=out.name, genes=files["genes"].name, how=chosen.how)
        said["agreement"] = {"shape": agreement.shape, "absolute": agreement.absolute, "relative": agreement.relative}
        (folder / "manual").write_text(json.dumps(said, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
        for kind, path in (files | {"network": out}).items():
            (folder / kind).replace(path)
    return agreement


def _chosen(format: str, out: Path) -> Format:
    """The format, if the file may have it and its libraries are there."""
    if format not in FORMATS or out.suffix != f".{format}":
        raise RunError(
            f"a network is exported to one of {', '.join(FORMATS)}, and the file's name ends in it, but got {format} "
            f"and {out.name}; pass for example --format pt2 --out model.pt2."
        )
    FORMATS[format].require()
    return FORMATS[format]


def _about(configs: Path) -> About:
    """What the bundle says of itself."""
    try:
        return {
            "metadata": dict(json.loads((configs / "metadata.json").read_text(encoding="utf-8"))),
            "inference": dict(yaml.safe_load((configs / "inference.yaml").read_text(encoding="utf-8"))),
        }
    except (OSError, ValueError, TypeError, yaml.YAMLError) as exc:
        raise RunError(
            f"an export says what it is, but metadata.json or inference.yaml of {configs} cannot be read ({exc}); "
            "superst bundle check tells what is wrong."
        ) from exc


@torch.inference_mode()
def compare(network: FusionVAE, exported: Format, content: bytes) -> Agreement:
    """Run an export and its origin on random images, of another number and size than those it was traced with.

    Args:
        network: on the CPU.
        exported: format of the export.
        content: the export.

    Raises:
        RunError: the two differ by more than `TOLERANCE`.
    """
    multiple = multiple_of(network)
    shape = (3, 3, 5 * multiple, 7 * multiple)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    expected = network(image)
    found = exported.run(content, image)
    fits = found.shape == expected.shape
    absolute = float((found - expected).abs().max()) if fits else float("inf")
    agreement = Agreement(shape, absolute, absolute / float(expected.max()))
    if not (agreement.absolute <= TOLERANCE and agreement.relative <= TOLERANCE):
        raise RunError(
            f"an export must agree with its network within {TOLERANCE:g}, but on images {shape} it gives "
            f"{tuple(found.shape)} for {tuple(expected.shape)} and differs by {absolute:.3g}, {agreement.relative:.3g} "
            "of the largest activity; nothing was written, export to another format."
        )
    return agreement
