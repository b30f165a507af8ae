"""The generative model p(z, image, counts, globals): what is drawn, from which law, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from superst_monai.errors import RunError
from superst_monai.model.likelihood import TINY, spot_log_prob, sum_over_spots
from superst_monai.networks.decoders import ExpressionDecoder, ImageDecoder
from superst_monai.networks.encoder import Factory, latent_shapes
from superst_monai.networks.fusion import Fusion
from superst_monai.transforms.counts import select_rows
from superst_monai.types import Site

UNKNOWN = -1
"""Level index of a section whose condition is not known."""


@dataclass(frozen=True)
class Architecture:
    """Sizes and layers of the model; everything that fixes the shapes of its `state_dict`.

    Args:
        n_genes: G.
        n_metagenes: K, capacity.
        n_sections: number of training sections.
        depth: D, levels of the pyramid.
        width: C_0, channels of the finest level.
        covariates: levels of each covariate, for example `{"section": ["C2", "C6"]}`.
        norm: MONAI normalisation factory.
        act: MONAI activation factory.
    """

    n_genes: int
    n_metagenes: int
    n_sections: int
    depth: int
    width: int
    covariates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    norm: Factory = "batch"
    act: Factory = "leakyrelu"


@dataclass(frozen=True)
class Batch:
    """Patches on their way to the objective; shapes as in `types.Key`."""

    image: Tensor  # (B, 3, H, W)
    label: Tensor  # (B, H, W) int64
    counts: Tensor  # (S, G), sparse COO or dense
    spot_section: Tensor  # (S,) int64
    occluded: Tensor  # (B, 1, H, W) bool
    share: Tensor  # (S,) share of the spot's UMIs that the counts hold


class SpotCounts(TorchDistribution):
    """Law of the counts of spots: independent negative binomials over genes, by `spot_log_prob`.

    Args:
        size: metagene size of each spot `(S, K)` [1].
        section: of each spot `(S,)` int64.
        profile: log fold change of each metagene `(K, G)`.
        log_rate: log baseline rate of each section, effects included `(N, G)`.
        logits: of each section `(N, G)`.
    """

    arg_constraints = {"size": constraints.nonnegative}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)  # type: ignore[no-untyped-call]

    def __init__(
        self,
        size: Tensor,
        section: Tensor,
        profile: Tensor,
        log_rate: Tensor,
        logits: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.size = size
        self.section = section
        self.profile = profile
        self.log_rate = log_rate
        self.logits = logits
        super().__init__(size.shape[:1], logits.shape[1:], validate_args=validate_args)

    @property
    def total_count(self) -> Tensor:
        """r_sg = sum_k size_sk exp(profile_kg + log_rate_sg), `(S, G)`."""
        return (self.size @ self.profile.exp()) * self.log_rate.exp()[self.section]

    @property
    def mean(self) -> Tensor:
        """Expected counts `(S, G)`, total_count * exp(logits)."""
        return self.total_count * self.logits.exp()[self.section]

    @property
    def variance(self) -> Tensor:
        """Variance of the counts `(S, G)`, mean * (1 + exp(logits))."""
        return self.mean * (1.0 + self.logits.exp()[self.section])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability [nat] of the counts `(S, G)`, sparse or dense, of each spot `(S,)`, section by section."""
        value = as_sparse(value)
        rows, found = [], []
        for n in sorted(set(self.section.tolist())):
            row = (self.section == n).nonzero().squeeze(1)
            counts = value if len(row) == len(self.section) else select_rows(value, row)
            rate = (self.profile + self.log_rate[n]).exp()  # (K, G)
            found.append(spot_log_prob(counts, self.size[row], rate, self.logits[n]))
            rows.append(row)
        return torch.cat(found)[torch.cat(rows).argsort()]

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Counts `(..., S, G)` drawn as a gamma mixture of Poisson laws."""
        rate = torch.distributions.Gamma(self.total_count.clamp_min(TINY), (-self.logits).exp()[self.section])
        return torch.poisson(rate.sample(torch.Size(sample_shape)))


def as_sparse(counts: Tensor) -> Tensor:
    """Counts as a coalesced COO tensor, without copies if they are one."""
    return (counts if counts.is_sparse else counts.to_sparse()).coalesce()


class GenerativeModel(nn.Module):
    """Decoders and global parameters with the order of draws as `forward`.

    Args:
        arch: sizes and layers.
        mixed_precision: run convolutions in bfloat16; the likelihood always runs in float32.
    """

    condition: Tensor
    active: Tensor

    def __init__(self, arch: Architecture, *, mixed_precision: bool = False) -> None:
        super().__init__()
        self.arch = arch
        self.mixed_precision = mixed_precision
        layers = {"norm": arch.norm, "act": arch.act}
        self.fusion = Fusion(arch.depth, arch.width, n_context=arch.n_metagenes + 1, **layers)
        self.image_decoder = ImageDecoder(arch.width, **layers)
        self.expression_decoder = ExpressionDecoder(arch.width, arch.n_metagenes, **layers)
        self.log_rate = nn.Parameter(torch.zeros(arch.n_genes))  # log r_g
        self.logit = nn.Parameter(torch.zeros(arch.n_genes))  # l_g
        self.log_tau = nn.Parameter(torch.zeros(arch.n_genes))  # prior sd of the profiles
        wide = {name: nn.Parameter(torch.full((arch.n_genes,), -1.0)) for name in arch.covariates}
        self.log_sigma = nn.ParameterDict(wide)  # prior sd of rate effects
        self.log_rho = nn.ParameterDict({name: nn.Parameter(p.detach() - 1.0) for name, p in wide.items()})
        self.register_buffer("active", torch.ones(arch.n_metagenes, dtype=torch.bool))
        self.register_buffer(
            "condition", torch.full((len(arch.covariates), arch.n_sections), UNKNOWN, dtype=torch.int64)
        )

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Features `(B, C_0 + K + 1, H, W)` of latent variables of all levels."""
        found: Tensor = self.fusion(latents)
        return found

    def expression(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Activity `(B, K, H, W)`, zero for inactive metagenes, and scale `(B, 1, H, W)` of features."""
        logits, raw = self.expression_decoder(h)
        logits = logits.masked_fill(~self.active[:, None, None], -torch.inf)
        return logits.softmax(dim=1), F.softplus(raw) + 1e-8

    def expression_in_spots(self, h: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Activity `(P, K)`, scale `(P, 1)` and label `(P,)` of the pixels that belong to a spot.

        Args:
            h: features `(B, C_0 + K + 1, H, W)`.
            label: batch-wide spot of each pixel `(B, H, W)`, 0 for none.
        """
        label = label.flatten()
        pixels = label.nonzero().squeeze(1)
        logits, raw = self.expression_decoder.at(h, pixels)
        logits = logits.masked_fill(~self.active, -torch.inf)
        activity = logits.T.softmax(dim=0).T  # eight times as fast as over the short rows
        return activity, F.softplus(raw) + 1e-8, label[pixels]

    def effects(self, levels: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor | float:
        """Sum of covariate effects of each section, `(N, G)`, 0 without covariates.

        Args:
            levels: one-hot `(N, J)` a covariate.
            weights: effect of each level `(J, G)` a covariate.
        """
        return sum((levels[name] @ weights[name] for name in self.arch.covariates), start=0.0)

    def one_hot(self, name: str, drawn: Tensor | None) -> Tensor:
        """Condition of each section `(N, J)`: the known one, or row by row the `drawn` one `(N, J)`."""
        row = self.condition[list(self.arch.covariates).index(name)]
        known = F.one_hot(row.clamp_min(0), len(self.arch.covariates[name])).to(self.log_rate.dtype)
        return known if drawn is None else torch.where((row == UNKNOWN)[:, None], drawn, known)

    def has_unknown(self, name: str) -> bool:
        """Whether a covariate's level is unknown on a training section."""
        return bool((self.condition[list(self.arch.covariates).index(name)] == UNKNOWN).any())

    def set_conditions(self, levels: Mapping[str, Sequence[str | None]]) -> None:
        """Write down the level of each training section; None is unknown.

        Raises:
            RunError: a covariate or level that the architecture does not have.
        """
        for row, (name, known) in enumerate(self.arch.covariates.items()):
            for section, level in enumerate(levels[name]):
                if level is not None and level not in known:
                    raise RunError(f"{name}={level} is none of the levels {list(known)}; check the covariate column.")
                self.condition[row, section] = UNKNOWN if level is None else list(known).index(level)

    def draw_globals(self, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Draw profiles and effects; gives profile `(K, G)`, log rates `(N, G)` and logits `(N, G)` of the sections.

        Args:
            scale: B / N, the share of an epoch that this batch stands for.
        """
        shape = (self.arch.n_metagenes, self.arch.n_genes)
        rate: dict[str, Tensor] = {}
        logit: dict[str, Tensor] = {}
        levels: dict[str, Tensor] = {}
        with poutine.scale(scale=scale):
            prior = dist.Normal(0.0, self.log_tau.exp()).expand(shape).mask(self.active[:, None])
            profile = pyro.sample(Site.PROFILE, prior.to_event(2))
            for name, known in self.arch.covariates.items():
                shape = (len(known), self.arch.n_genes)
                sigma, rho = self.log_sigma[name].exp(), self.log_rho[name].exp()
                rate[name] = pyro.sample(
                    f"{Site.RATE_EFFECT}_{name}", dist.Normal(0.0, sigma).expand(shape).to_event(2)
                )
                logit[name] = pyro.sample(
                    f"{Site.LOGIT_EFFECT}_{name}", dist.Normal(0.0, rho).expand(shape).to_event(2)
                )
                drawn = None
                if self.has_unknown(name):
                    flat = torch.zeros(self.arch.n_sections, len(known), device=self.logit.device)
                    prior = dist.OneHotCategorical(logits=flat).mask(self.unknown(name))
                    drawn = pyro.sample(f"{Site.CONDITION}_{name}", prior.to_event(1))
                levels[name] = self.one_hot(name, drawn)
        empty = self.log_rate.new_zeros(self.arch.n_sections, 1)
        log_rate = self.log_rate + self.effects(levels, rate) + empty  # (N, G)
        return profile, log_rate, self.logit + self.effects(levels, logit) + empty

    def unknown(self, name: str) -> Tensor:
        """Which training sections have an unknown level of a covariate, `(N,)` bool."""
        return self.condition[list(self.arch.covariates).index(name)] == UNKNOWN

    def forward(self, batch: Batch, n_patches: int) -> None:
        """Draw everything once, in the order of the design, conditioned on image and counts.

        Args:
            batch: patches.
            n_patches: N, patches in one epoch.
        """
        size = batch.image.shape[0]
        profile, log_rate, logit = self.draw_globals(size / n_patches)
        standard = dist.Normal(batch.image.new_zeros(()), batch.image.new_ones(()))
        with pyro.plate("patch", size):
            latents = [
                pyro.sample(f"{Site.LATENT}_{d}", standard.expand([size, *s]).to_event(3))
                for d, s in enumerate(latent_shapes(self.arch.depth, self.arch.width, *batch.image.shape[-2:]))
            ]
            with torch.autocast(batch.image.device.type, dtype=torch.bfloat16, enabled=self.mixed_precision):
                h = self.decode(latents)
                mean, sd = self.image_decoder(h)
                activity, scale, spot = self.expression_in_spots(h, batch.label)
            seen = ~batch.occluded
            pyro.sample(Site.IMAGE, dist.Normal(mean, sd).mask(seen).to_event(3), obs=batch.image)
        n_spots = batch.counts.shape[0]
        if n_spots:
            sizes = sum_over_spots(activity, scale, spot, n_spots=n_spots) * batch.share[:, None]  # (S, K)
            with pyro.plate("spot", n_spots):
                law = SpotCounts(sizes, batch.spot_section, profile, log_rate, logit)
                pyro.sample(Site.COUNTS, law, obs=batch.counts)
