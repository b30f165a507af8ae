"""Laws of a run folder as a MONAI bundle: MONAI's own commands accept it, and predict from anywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_net_in_out

from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.maps import open_maps
from superst_monai.inference.posterior import Window
from superst_monai.inference.run import load_run
from superst_monai.inference.slide_map import predict
from superst_monai.transforms.tissue import find_tissue


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    """Put the root logger back as it was: a workflow configures it from logging.conf."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_the_network_of_a_run_folder_has_the_shapes_of_the_metadata(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    """With the numbers of a run filled in, MONAI's check passes."""
    configs = make_run(tmp_path / "run", n_metagenes=12) / "configs"
    verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / "inference.yaml"), device="cpu")


def test_a_run_folder_predicts_as_a_bundle_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run: Callable, section: Section
) -> None:
    """`monai.bundle run` in another folder writes the maps that `predict` writes."""

    run = make_run(tmp_path / "run", covariates={"section": ["C2", "C6"]})
    write_section(section, tmp_path / "data" / "C2.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    workflow = ConfigWorkflow(
        str(run / "configs" / "inference.yaml"),
        workflow_type="inference",
        bundle_root=str(run),
        dataset_dir=str(tmp_path / "data"),
        source="C2.zarr",
        out="maps.zarr",
        device="cpu",
        **{"inferer#samples": 2, "inferer#conditions": {"section": "C6"}},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    found = open_maps(tmp_path / "elsewhere" / "maps.zarr")
    assert found.record["conditions"] == {"section": "C6"}
    plain = predict(load_run(run), section, tmp_path / "b.zarr", samples=2, conditions={"section": "C6"})
    np.testing.assert_array_equal(found.gene("Mbp")[0], open_maps(plain).gene("Mbp")[0])


def test_a_pipeline_that_hands_over_pixels_gets_their_activity(
    tmp_path: Path, make_run: Callable[..., Path], section: Section
) -> None:
    """By the same ids: preprocessing makes of it what `predict` shows the network, the evaluator runs it."""
    path = make_run(tmp_path / "run")
    workflow = ConfigWorkflow(
        str(path / "configs" / "inference.yaml"), workflow_type="inference", bundle_root=str(path), device="cpu"
    )
    workflow.initialize()
    sample = workflow.preprocessing({"image": np.moveaxis(section.image, -1, 0)})
    workflow.evaluator.data_loader = [{"image": sample["image"][None]}]
    workflow.run()
    run = load_run(path)
    image = canvas_of(section, 4.0, find_tissue).image(Window(0, 0, 152, 212))[None]
    with torch.inference_mode():
        expected = run.network(image)
    torch.testing.assert_close(workflow.evaluator.state.output["pred"], expected, rtol=1e-5, atol=1e-7)
    assert workflow.postprocessing({"pred": 1}) == {"pred": 1}
