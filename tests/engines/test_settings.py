"""Impossible settings are refused, all at once, before anything is read or written."""

from __future__ import annotations

import pytest
import yaml

from superst_monai.engines.run_folder import bundle_folder
from superst_monai.engines.settings import RULES, check_settings
from superst_monai.engines.training_data import TrainingData
from superst_monai.engines.workflow import train
from superst_monai.errors import RunError


def test_the_shipped_configuration_passes_and_every_rule_is_of_a_key():
    """The bundle's own defaults are possible, and no rule speaks of a key that does not exist."""
    shipped = yaml.safe_load((bundle_folder() / "configs/train.yaml").read_text())
    check_settings(shipped)
    assert set(RULES) <= set(shipped["settings"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("depth", 0, "depth must be a whole number >= 1, got 0"),
        ("n_metagenes", 0, "n_metagenes must be a whole number >= 1, got 0"),
        ("batch_size", 1.5, "batch_size must be a whole number >= 1, got 1.5"),
        ("seed", -1, "seed must be a whole number >= 0, got -1"),
        ("epochs", 0, "epochs must be a whole number >= 1, got 0"),
        ("minutes", 0, "minutes must be a positive number, got 0"),
        ("mpp", 0, "mpp must be a positive number, got 0"),
        ("learning_rate", -1.0, "learning_rate must be a positive number, got -1.0"),
        ("learning_rate", float("nan"), "learning_rate must be a positive number, got nan"),
        ("val_share", 1, r"val_share must be a share in \[0, 1\), got 1"),
        ("val_umis", -0.1, r"val_umis must be a share in \[0, 1\), got -0.1"),
        ("min_counts", True, "min_counts must be a whole number >= 0, got True"),
        ("averaging", 1.0, "averaging must be a number between 0 and 1, got 1.0"),
    ],
)
def test_each_rule_says_what_must_hold(key, value, words):
    """The message names the key, the rule and the value."""
    with pytest.raises(RunError, match=words):
        check_settings({key: value})


def test_all_faults_come_at_once():
    """Several bad settings make one message."""
    with pytest.raises(RunError, match=r"depth must.*; seed must.*; pass other values"):
        check_settings({"depth": 0, "seed": -3, "width": 4})


def test_a_patch_must_fit_the_depth():
    """Depth 5 halves four times; the nearest multiple is proposed."""
    check_settings({"depth": 5, "patch_px": 96})
    with pytest.raises(RunError, match="multiple of 16 for depth 5, got 90, for example 96"):
        check_settings({"depth": 5, "patch_px": 90})


def test_every_door_checks_before_it_writes(stores, tmp_path):
    """A refused setting leaves no run folder."""
    with pytest.raises(RunError, match="epochs must be"):
        train(stores, tmp_path / "run", epochs=0)
    assert not (tmp_path / "run").exists()


def test_patches_far_wider_than_the_sections_are_refused(make_section):
    """They would cost memory for glass."""
    with pytest.raises(RunError, match="4096 px is far wider than the sections, which have at most 96 px at 10 um"):
        TrainingData([make_section("A")], patch_px=4096, min_counts=1)


def test_a_section_given_twice_is_refused(make_section):
    """Names tell sections apart in covariates and records."""
    with pytest.raises(RunError, match="names of their own, but A is given more than once"):
        TrainingData([make_section("A"), make_section("A")], min_counts=1)


def test_a_run_is_a_folder(stores, tmp_path):
    """An --out that is a file is named."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"a run is a folder, but .*file is a file"):
        train(stores, tmp_path / "file", epochs=1)
