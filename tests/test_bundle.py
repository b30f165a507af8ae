"""Laws of the bundle without weights: MONAI's own commands accept it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from packaging.version import Version

from superst_monai.engines.run_folder import bundle_folder

MANDATORY = (
    "schema version changelog monai_version pytorch_version numpy_version required_packages_version name task "
    "description authors copyright intended_use network_data_format"
)
CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    """Put the root logger back as it was: a workflow configures it from logging.conf."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="module")
def metadata() -> dict:
    """The bundle's metadata."""
    return json.loads((bundle_folder() / "configs" / "metadata.json").read_text(encoding="utf-8"))


def test_the_metadata_are_complete(metadata: dict) -> None:
    """Everything that the specification asks for is there, and the version is in the changelog."""
    assert [key for key in MANDATORY.split() if not metadata.get(key)] == []
    assert metadata["version"] in metadata["changelog"]
    assert metadata["authors"] == "superst_monai developers"
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    assert (image["num_channels"], image["value_range"], image["dtype"]) == (3, [-0.9, 0.9], "float32")
    for data in (image, pred):
        assert data["spatial_shape"] == ["16*n", "16*n"]
        assert len(data["channel_def"]) == data["num_channels"]


def test_the_metadata_name_versions_that_can_be_installed(metadata: dict) -> None:
    """The bundle asks for this package, and for no newer libraries than it was tested with."""
    packages = metadata["required_packages_version"]
    assert packages["superst-monai"] == version("superst-monai") == metadata["version"]
    asked = {**packages, "monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    asked["numpy"] = metadata["numpy_version"]
    newer = {name: found for name, found in asked.items() if Version(found) > Version(version(name))}
    assert newer == {}


def test_the_bundle_carries_the_licence_of_the_project() -> None:
    """One licence, word for word."""
    assert (bundle_folder() / "LICENSE").read_text() == (CHECKOUT / "LICENSE").read_text()


@pytest.mark.parametrize("n", [1, 2])
def test_the_network_has_the_shapes_that_the_metadata_say(n: int) -> None:
    """MONAI's check of the shipped bundle passes."""
    configs = bundle_folder() / "configs"
    verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / "inference.yaml"), device="cpu", n=n)


def test_the_workflow_has_every_property_that_monai_asks_for() -> None:
    """Required ids exist and optional ones are the ones referred to."""
    workflow = ConfigWorkflow(str(bundle_folder() / "configs" / "inference.yaml"), workflow_type="inference")
    workflow.initialize()
    assert workflow.check_properties() == []


def test_evaluation_runs_prediction_first() -> None:
    """The overlay keeps everything of the inference, and evaluates the maps against the source afterwards."""
    configs = bundle_folder() / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / "inference.yaml"), str(configs / "evaluate.yaml")])
    parser.update({"source": "C2.zarr", "dataset_dir": "data"})
    assert parser["run"] == [
        "$@evaluator.run()",
        "$evaluate_maps(@out, os.path.join(@dataset_dir, @truth), @report_dir)",
    ]
    assert "$from superst_monai.analysis.report import evaluate_maps" in parser["imports"]
    assert "$from superst_monai.inference.inferer import prepare_source" in parser["imports"]
    assert parser["truth"] == "@source"
