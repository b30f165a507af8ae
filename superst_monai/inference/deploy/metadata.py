"""The rules of a bundle's metadata.json: what MONAI's schema asks for, offline, and what the network says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from superst_monai.transforms.finish import IMAGE_RANGE

_TEXTS = (
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "name", "task"),
    *("description", "authors", "copyright", "intended_use"),
)
_KINDS: Mapping[str, type] = {
    **dict.fromkeys(_TEXTS, str),
    "changelog": dict,
    "required_packages_version": dict,
    "limits": list,
    "references": list,
    "network_data_format": dict,
}
_TENSOR_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("type", "format", "modality", "dtype"), str),
    "num_channels": int,
    "spatial_shape": list,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}


def metadata_faults(about: Any, *, depth: int, n_metagenes: int) -> list[str]:
    """What is wrong with the metadata of a network; an empty list if nothing is.

    Args:
        about: content of `metadata.json`.
        depth: D of the network.
        n_metagenes: K of the network.

    Source: the MONAI bundle specification, docs.monai.io, mb_specification; `limits` is of this project.
    """
    if not isinstance(about, Mapping):
        return [f"must be an object, got {type(about).__name__}"]
    faults = list(_wrong_kinds(about, _KINDS, ""))
    changelog = about.get("changelog")
    if isinstance(changelog, Mapping) and about.get("version") not in changelog:
        faults.append(f"changelog must tell of version {about.get('version')}, it has {', '.join(changelog) or 'none'}")
    sides = [f"{2 ** (depth - 1)}*n"] * 2
    common: dict[str, Any] = {"dtype": "float32", "spatial_shape": sides}
    image = common | {"num_channels": 3, "value_range": [-IMAGE_RANGE, IMAGE_RANGE]}
    for place, expected in (("inputs.image", image), ("outputs.pred", common | {"num_channels": n_metagenes})):
        tensor = about.get("network_data_format")
        for key in place.split("."):
            tensor = tensor.get(key) if isinstance(tensor, Mapping) else None
        if not isinstance(tensor, Mapping):
            faults.append(f"network_data_format.{place} is missing")
            continue
        faults += _wrong_kinds(tensor, _TENSOR_KINDS, f"{place}.")
        faults += [
            f"{place}.{key} must be {value}, as of the network, got {tensor[key]}"
            for key, value in expected.items()
            if key in tensor and tensor[key] != value
        ]
        numbers = {str(k) for k in range(expected["num_channels"])}
        if isinstance(tensor.get("channel_def"), Mapping) and set(tensor["channel_def"]) != numbers:
            faults.append(f"{place}.channel_def must name channels 0 to {len(numbers) - 1}, one each")
    return faults


def _wrong_kinds(about: Mapping[str, Any], kinds: Mapping[str, type], place: str) -> Iterator[str]:
    """Keys that are missing, empty or of another kind."""
    for key, kind in kinds.items():
        if key not in about:
            yield f"{place}{key} is missing"
        elif not isinstance(about[key], kind) or (kind is int and isinstance(about[key], bool)):
            yield f"{place}{key} must be {kind.__name__}, got {type(about[key]).__name__}"
        elif not about[key] and kind is not bool and key != "value_range":
            yield f"{place}{key} is empty"
