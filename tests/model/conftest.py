"""A small network with a small batch, shared by the tests of the model."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pytest
import torch

from superst_monai.model.generative import Batch
from superst_monai.model.objective import FusionVAE

MakeCase = Callable[..., tuple[FusionVAE, Batch]]


@pytest.fixture
def make_case() -> MakeCase:
    """Build a network of 5 genes and 3 metagenes and a batch of 2 patches of 8 px with 4 spots on 2 sections."""

    def make(*, seed: int = 0, covariates: dict[str, list[str]] | None = None, n_patches: int = 7) -> tuple:
        pyro.enable_validation(True)
        torch.manual_seed(seed)
        network = FusionVAE(
            5, n_metagenes=3, n_sections=2, depth=3, width=4, covariates=covariates or {}, n_patches=n_patches
        )
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if any(part in name for part in ("log_rate", "logit", "profile.mean", "effect", "log_sd")):
                    parameter.normal_(-0.5, 0.3)
        label = torch.randint(0, 3, (2, 8, 8))
        label[1] = torch.where(label[1] > 0, label[1] + 2, 0)
        batch = Batch(
            image=torch.rand(2, 3, 8, 8) * 1.6 - 0.8,
            label=label,
            counts=torch.poisson(torch.full((4, 5), 2.0)),
            spot_section=torch.tensor([0, 0, 1, 1]),
            occluded=torch.rand(2, 1, 8, 8) < 0.2,
            share=torch.ones(4),
        )
        return network, batch

    return make
