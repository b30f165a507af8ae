"""The guide q: latent variables from the image alone, mean-field globals, relaxed conditions."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, nn

from superst_monai.model.generative import Architecture, Batch, GenerativeModel
from superst_monai.networks.encoder import Encoder
from superst_monai.types import Site


class MeanField(nn.Module):
    """Independent normals over a matrix `(rows, G)`, `mean` and `log_sd` learned."""

    def __init__(self, rows: int, n_genes: int, *, sd: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(rows, n_genes))
        self.log_sd = nn.Parameter(torch.full((rows, n_genes), sd).log())


def _standard_normal(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


class _Normal(dist.Normal):
    """A normal that is drawn in fewer passes over memory."""

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws, differentiable in mean and deviation."""
        shape = self._extended_shape(sample_shape)
        return torch.addcmul(self.loc, self.scale, _standard_normal(shape, self.loc.dtype, self.loc.device))


def normal(parameters: Any) -> dist.Normal:
    """The law that a `MeanField` holds, every entry its own."""
    return dist.Normal(parameters.mean, parameters.log_sd.exp())


def divergence_from_standard(law: dist.Normal) -> Tensor:
    """KL(law || Normal(0, 1)) [nat], summed over all entries: sum (mean^2 + sd^2 - 1) / 2 - log sd."""
    found: Tensor = _Divergence.apply(law.loc, law.scale)  # type: ignore[no-untyped-call]
    return found


class _Divergence(torch.autograd.Function):
    """The divergence with its gradients, mean and sd - 1 / sd, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, sd: Tensor) -> Tensor:
        ctx.save_for_backward(mean, sd)
        squares = torch.dot(mean.flatten(), mean.flatten()) + torch.dot(sd.flatten(), sd.flatten())
        return 0.5 * (squares - mean.numel()) - sd.log().sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        mean, sd = ctx.saved_tensors
        return gradients[0] * mean, sd.reciprocal().neg_().add_(sd).mul_(gradients[0])


class Guide(nn.Module):
    """Variational posterior with the same sites as the model.

    Args:
        arch: sizes and layers.
        first_sd: first posterior standard deviation of profiles and effects.
    """

    def __init__(self, arch: Architecture, *, first_sd: float = 0.05) -> None:
        super().__init__()
        self.arch = arch
        self.encoder = Encoder(arch.depth, arch.width, norm=arch.norm, act=arch.act)
        self.profile = MeanField(arch.n_metagenes, arch.n_genes, sd=first_sd)
        levels = {name: len(known) for name, known in arch.covariates.items()}
        self.rate_effect = nn.ModuleDict({c: MeanField(j, arch.n_genes, sd=first_sd) for c, j in levels.items()})
        self.logit_effect = nn.ModuleDict({c: MeanField(j, arch.n_genes, sd=first_sd) for c, j in levels.items()})
        self.condition_logits = nn.ParameterDict(
            {c: nn.Parameter(torch.zeros(arch.n_sections, j)) for c, j in levels.items()}
        )

    def forward(self, batch: Batch, n_patches: int, model: GenerativeModel) -> None:
        """Draw every latent site of `model` for a batch.

        Args:
            batch: patches.
            n_patches: N, patches in one epoch.
            model: tells which metagenes are active and which conditions unknown.
        """
        size = batch.image.shape[0]
        with poutine.scale(scale=size / n_patches):
            self.draw_globals(model)
        with torch.autocast(batch.image.device.type, dtype=torch.bfloat16, enabled=model.mixed_precision):
            found: list[tuple[Tensor, Tensor]] = self.encoder(batch.image)
        with pyro.plate("patch", size):
            for d, (mean, sd) in enumerate(found):
                pyro.sample(f"{Site.LATENT}_{d}", _Normal(mean, sd).to_event(3))  # type: ignore[no-untyped-call]

    def draw_globals(self, model: GenerativeModel) -> None:
        """Draw profiles, effects and unknown conditions."""
        pyro.sample(Site.PROFILE, normal(self.profile).mask(model.active[:, None]).to_event(2))
        for name in self.arch.covariates:
            for site, effects in ((Site.RATE_EFFECT, self.rate_effect), (Site.LOGIT_EFFECT, self.logit_effect)):
                pyro.sample(f"{site}_{name}", normal(effects[name]).to_event(2))
            if model.has_unknown(name):
                law = dist.OneHotCategoricalStraightThrough(logits=self.condition_logits[name])
                pyro.sample(f"{Site.CONDITION}_{name}", law.mask(model.unknown(name)).to_event(1))
