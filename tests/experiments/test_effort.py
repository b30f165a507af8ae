"""Efforts say what a training gets, and refuse what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import yaml

from superst_monai.engines.run_folder import bundle_folder
from superst_monai.errors import RunError
from superst_monai.experiments.effort import FULL, QUICK, Effort


def test_efforts_are_settings_and_arguments() -> None:
    """What is pinned holds all of it; the options of a quick training are keys of the configuration."""
    effort = replace(QUICK, minutes=0.5)
    assert effort.settings == {"samples": 4, "repeats": 2, "minutes": 0.5, "options": dict(QUICK.options)}
    assert effort.training == {"minutes": 0.5, "options": dict(QUICK.options)}
    assert FULL.training == {"minutes": None, "options": {}}
    known = yaml.safe_load((bundle_folder() / "configs" / "train.yaml").read_text())
    assert set(QUICK.options) < set(known)
    assert QUICK.options["default_steps"] < known["default_steps"]


def test_impossible_efforts_are_refused() -> None:
    """All faults at once."""
    with pytest.raises(RunError, match=r"samples must be at least 1, got 0; repeats .* got -1; minutes .* got nan"):
        Effort(samples=0, repeats=-1, minutes=math.nan)
