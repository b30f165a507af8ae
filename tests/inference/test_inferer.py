"""Laws of the inferer: MONAI's door leads to the same maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.errors import RunError
from superst_monai.inference.inferer import PosteriorMapsInferer, prepare_source
from superst_monai.inference.maps import open_maps
from superst_monai.inference.run import Run


def test_the_inferer_writes_what_predict_writes(run: Run, section: Section, maps_path: Path, tmp_path: Path) -> None:
    """Called with a path and the network, it gives the maps of `predict` with the same options."""
    write_section(section, tmp_path / "C2.zarr")
    inferer = PosteriorMapsInferer(run.path, tmp_path / "maps.zarr", samples=4, tile_px=64)
    source, target = prepare_source({"image": [str(tmp_path / "C2.zarr")]}, "cpu")
    out = inferer(source, run.network)
    assert target is None
    for found, expected in zip(open_maps(out).gene("Mbp"), open_maps(maps_path).gene("Mbp"), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_images_in_memory_give_their_activity(run: Run) -> None:
    """A tensor goes through the network, whatever the network is made of, and nothing is written."""
    images = torch.rand(2, 3, 8, 12) - 0.5
    found, target = prepare_source({"image": images}, "cpu")
    assert target is None
    inferer = PosteriorMapsInferer(run.path, "")
    torch.testing.assert_close(inferer(found, run.network), run.network(images), rtol=0, atol=0)
    torch.testing.assert_close(inferer(found, torch.nn.Identity()), images, rtol=0, atol=0)


def test_an_inferer_needs_the_runs_network_a_source_and_an_output(run: Run, tmp_path: Path) -> None:
    """Another network, and paths that were never set, are refused before anything is read."""
    with pytest.raises(RunError, match="need the FusionVAE of the run, got Identity"):
        PosteriorMapsInferer(run.path, tmp_path / "a.zarr")("C2.zarr", torch.nn.Identity())
    with pytest.raises(RunError, match="source names no file, out names no file; pass --source X --out Y"):
        PosteriorMapsInferer(run.path, "")("", run.network)
