"""The law of the training sections is that of the weights that the run keeps."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from superst_monai.engines.domain import training_domain, write_training_domain
from superst_monai.engines.run_folder import RunFolder
from superst_monai.engines.workflow import train
from superst_monai.model.domain import Domain
from superst_monai.model.objective import FusionVAE


def network_of(seed: int) -> FusionVAE:
    """An untrained network whose weights depend on the seed."""
    torch.manual_seed(seed)
    return FusionVAE(12, n_metagenes=2, depth=3, width=4).eval()


def test_every_block_that_is_tissue_by_half_counts_once(make_section: Callable) -> None:
    """80 x 64 px of tissue are 20 x 16 blocks of 4 px, whatever the windows; of more windows some are left out."""
    network, section = network_of(0), make_section()
    whole = training_domain(network, [section, make_section(seed=1)])
    assert whole is not None
    assert whole.n_blocks == 2 * 320
    few = training_domain(network, [section], most_windows=1)
    assert few is not None
    assert few.n_blocks < 320
    assert training_domain(network, [section]) == training_domain(network, [section])


def test_the_file_is_of_the_weights_that_are_kept(make_section: Callable, tmp_path: Path) -> None:
    """The network in memory may have gone on: it is left as it is, and the law is that of `models/model.pt`."""
    kept, later, section = network_of(0), network_of(1), make_section()
    folder = RunFolder(tmp_path / "run")
    folder.models.mkdir(parents=True)
    folder.save_weights(kept)
    before = copy.deepcopy(later.state_dict())
    write_training_domain(folder, later, [section])
    digest = hashlib.sha256((folder.models / "model.pt").read_bytes()).hexdigest()
    found = Domain.from_json((folder.path / "domain.json").read_text(), digest, depth=3)
    assert found == training_domain(kept, [section])
    assert found != training_domain(later, [section])
    assert all(torch.equal(before[name], value) for name, value in later.state_dict().items())


def test_too_little_tissue_is_logged(make_section: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A crumb of tissue gives no law and no file, and the log says so."""
    section = make_section()
    tissue = np.zeros_like(section.tissue)
    tissue[8:16, 8:16] = True
    object.__setattr__(section, "tissue", tissue)
    folder = RunFolder(tmp_path / "run")
    folder.models.mkdir(parents=True)
    folder.save_weights(network_of(0))
    with caplog.at_level(logging.INFO, "superst_monai"):
        write_training_domain(folder, network_of(0), [section])
    assert not (folder.path / "domain.json").exists()
    assert "too little tissue" in caplog.text


def test_training_leaves_the_law_behind(stores: list[Path], tmp_path: Path) -> None:
    """A run that is done knows the domain of its weights."""
    small = {"n_metagenes": 3, "depth": 3, "width": 4, "patch_px": 32, "batch_size": 2, "min_counts": 1}
    run = train(stores, tmp_path / "run", epochs=1, options=small)
    digest = hashlib.sha256((run / "models" / "model.pt").read_bytes()).hexdigest()
    found = Domain.from_json((run / "domain.json").read_text(), digest, depth=3)
    assert found is not None
    assert found.n_blocks == 2 * 320
