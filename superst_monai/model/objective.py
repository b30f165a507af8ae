"""The objective: negative evidence lower bound per patch [nat], with its parts told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence

from superst_monai.model.generative import Architecture, Batch, GenerativeModel
from superst_monai.model.guide import Guide, divergence_from_standard
from superst_monai.networks.encoder import Factory
from superst_monai.types import Site

PARTS = ("image", "expression", "kl_local", "kl_global")
"""Names of the objective's parts, in the order in which they are logged."""


class _PartsELBO(TraceMeanField_ELBO):
    """Pyro's mean-field bound with every divergence in closed form, that keeps the parts of its last evaluation.

    Pyro computes the log probability of every site and then uses those of the observed ones; here only these are
    computed, which saves a third of the time beside the network's.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: dict[str, Tensor] = {}

    def _get_trace(
        self, model: Callable[..., None], guide: Callable[..., None], args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        return model_trace, guide_trace

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[float, Tensor]:
        zero = torch.zeros((), device=model_trace.nodes[Site.IMAGE]["log_prob_sum"].device)
        parts = dict.fromkeys(PARTS, zero)
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample" or isinstance(site["fn"], _Subsample):
                continue
            if site["is_observed"]:
                parts["image" if name == Site.IMAGE else "expression"] = -site["log_prob_sum"]
                continue
            node = guide_trace.nodes[name]
            q: Any = node["fn"]
            p: Any = site["fn"]
            if name.startswith(f"{Site.LATENT}_"):
                parts["kl_local"] = parts["kl_local"] + divergence_from_standard(q.base_dist)
            else:
                kl = scale_and_mask(kl_divergence(q, p), scale=node["scale"], mask=node["mask"])
                parts["kl_global"] = parts["kl_global"] + kl.sum()
        loss = sum(parts.values(), start=zero)
        self.parts = {name: part.detach() for name, part in parts.items()}
        return float(loss.detach()), loss


class FusionVAE(nn.Module):
    """Model, guide and objective as one network: what MONAI's trainer optimises and what a bundle stores.

    Called with an image alone it is the deterministic network image to scaled activity; called with labels and
    counts it is the objective.

    Args:
        n_genes: G.
        n_metagenes: K, capacity.
        n_sections: number of training sections.
        depth: D, levels of the pyramid.
        width: C_0, channels of the finest level.
        covariates: levels of each covariate.
        norm: MONAI normalisation factory.
        act: MONAI activation factory.
        n_patches: N, patches in one epoch; weighs local against global terms.
        mixed_precision: run convolutions in bfloat16.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        n_metagenes: int = 12,
        n_sections: int = 1,
        depth: int = 5,
        width: int = 16,
        covariates: Mapping[str, Sequence[str]] | None = None,
        norm: Factory = "batch",
        act: Factory = "leakyrelu",
        n_patches: int = 1,
        mixed_precision: bool = False,
    ) -> None:
        super().__init__()
        arch = Architecture(n_genes, n_metagenes, n_sections, depth, width, dict(covariates or {}), norm, act)
        self.n_patches = n_patches
        self.generative = GenerativeModel(arch, mixed_precision=mixed_precision)
        self.guide = Guide(arch)

    @property
    def arch(self) -> Architecture:
        """Sizes and layers."""
        return self.generative.arch

    def forward(self, image: Tensor, batch: Batch | None = None) -> Tensor | dict[str, Tensor]:
        """Scaled activity of an image, or the objective of a batch.

        Args:
            image: `(B, 3, H, W)` in [-0.9, 0.9].
            batch: the same patches with labels and counts.

        Returns:
            Without `batch`: expected scaled activity at the posterior mean `(B, K, H, W)` [1/px].
            With it: `loss`, -ELBO per patch [nat], its detached `PARTS`, per patch too.
        """
        if batch is None:
            activity, scale = self.generative.expression(
                self.generative.decode([m for m, _ in self.guide.encoder(image)])
            )
            return activity * scale
        elbo = _PartsELBO()
        loss: Tensor = elbo.differentiable_loss(  # type: ignore[no-untyped-call]
            self.generative, self._guide, batch, self.n_patches
        )
        size = image.shape[0]
        parts = {name: part / size for name, part in elbo.parts.items()}
        return {"loss": loss / size} | parts

    def _guide(self, batch: Batch, n_patches: int) -> None:
        self.guide(batch, n_patches, self.generative)
