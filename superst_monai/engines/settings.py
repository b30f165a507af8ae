"""What a training configuration may hold; all faults of a configuration at once, before anything is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from superst_monai.engines.metagene_policies import POLICIES
from superst_monai.errors import RunError


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    """Rule for a whole number of at least `least`."""
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least, f"a whole number >= {least}"


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


_SHARE: tuple[Callable[[Any], bool], str] = (lambda v: v == 0 or (_positive(v) and v < 1), "a share in [0, 1)")
RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "n_metagenes": (lambda v: v is None or _whole(1)[0](v), "a whole number >= 1"),
    "depth": _whole(1),
    "width": _whole(1),
    "batch_size": _whole(1),
    "nproc": _whole(1),
    "patch_px": _whole(2),
    "default_steps": _whole(1),
    "val_every_steps": _whole(1),
    "patience": _whole(1),
    "metagene_every_steps": _whole(1),
    "seed": _whole(0),
    "min_counts": _whole(0),
    "epochs": (lambda v: v is None or _whole(1)[0](v), "a whole number >= 1"),
    "minutes": (lambda v: v is None or _positive(v), "a positive number"),
    "mpp": (lambda v: v is None or _positive(v), "a positive number"),
    "learning_rate": (_positive, "a positive number"),
    "metagene_schedule": (lambda v: isinstance(v, str) and v in POLICIES, "one of " + ", ".join(POLICIES)),
    "averaging": (lambda v: _positive(v) and v < 1, "a number between 0 and 1"),
    "val_share": _SHARE,
    "val_umis": _SHARE,
}
"""What each setting must be: a test, and the words for it."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that no training can have.

    Args:
        settings: values of the training configuration by key; keys without a rule pass.

    Raises:
        RunError: every fault, by key.
    """
    faults = [
        f"{key} must be {words}, got {settings[key]!r}"
        for key, (holds, words) in RULES.items()
        if key in settings and not holds(settings[key])
    ]
    depth, patch = settings.get("depth"), settings.get("patch_px")
    if not faults and depth is not None and patch is not None and patch % 2 ** (depth - 1):
        multiple = 2 ** (depth - 1)
        near = max(multiple, round(patch / multiple) * multiple)
        faults.append(f"patch_px must be a multiple of {multiple} for depth {depth}, got {patch}, for example {near}")
    nproc, batch = settings.get("nproc", 1), settings.get("batch_size", 0)
    if not faults and batch % nproc:
        near = max(nproc, round(batch / nproc) * nproc)
        faults.append(f"batch_size must be a multiple of nproc, got {batch} for {nproc} processes, for example {near}")
    if faults:
        raise RunError("; ".join(faults) + "; pass other values.")
