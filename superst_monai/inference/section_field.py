"""Fit the field of a measured section under a trained run: the network stays, the counts round a pixel speak.

The run says what the image explains; the field u of `model/field.py` is what is left over. Pixel p of the section gets
the activity softmax_k(log a_kp + u_kp) and the scale s_p exp(u_{K+1,p}), with a and s those of the network. Effects of
the section are fitted with it: beta_g and gamma_g on log rate and logit of a gene, and beta_kg on its log rate in each
metagene, for the field moves metagenes where the image does not, and what varies so may be other genes. The network is
frozen, and so are the metagenes of other slides: histology alone predicts as before, whatever fields a run has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.inference.canvas import Canvas, canvas_of
from superst_monai.inference.colours import ColourPlane, colours_over
from superst_monai.inference.posterior import ORIENTATIONS, TileSampler
from superst_monai.inference.rates import choose_conditions, mean_rates
from superst_monai.inference.run import Run
from superst_monai.inference.tiles import draw_part, read_part, tissue_tiles
from superst_monai.model.field import FieldGrid, field_divergence
from superst_monai.model.likelihood import spot_log_prob, sum_over_spots
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.counts import rows_of, select_rows
from superst_monai.transforms.labels import spot_labels
from superst_monai.transforms.tissue import find_tissue

Floats = NDArray[np.float32]
Show = Callable[[float, float], None]
EFFECT_SD = 0.5
"""Prior standard deviation of a gene's effects on a section: log rate, log rate in one metagene, and logit."""
MOST = 3.0
"""Most that a field changes the log scale of a pixel."""
SPOTS_A_STEP = 500
"""Most spots whose counts one step of the fit looks at; the spots of a larger section take turns, in random order."""
ROUNDS = 30
"""Times that each spot is looked at, at least."""
MOST_A_TURN = 8.0
"""Most that a turn moves a node [learning rates], see `fit_field`."""


@dataclass(frozen=True, eq=False)
class SectionField:
    """Posterior of the field of one section, and its effects on genes.

    Attributes:
        grid: of the nodes.
        mean: `(K + 1, height, width)`.
        sd: the same shape.
        log_precision: log tau of each channel `(K + 1,)`.
        rate_effect: beta_g + beta_kg `(K, G)`, added to the log rates that the run has under the section's conditions.
        logit_effect: gamma_g `(G,)`.
    """

    grid: FieldGrid
    mean: Floats
    sd: Floats
    log_precision: Floats
    rate_effect: Floats
    logit_effect: Floats

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors."""
        numbers = {f"grid.{name}": torch.tensor(value) for name, value in asdict(self.grid).items()}
        names = ("mean", "sd", "log_precision", "rate_effect", "logit_effect")
        return numbers | {name: torch.from_numpy(getattr(self, name)) for name in names}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> SectionField:
        """Undo `state_dict`."""
        numbers: dict[str, Any] = {name[5:]: v.item() for name, v in state.items() if name.startswith("grid.")}
        grid = FieldGrid(**numbers)
        return cls(grid, **{name: value.numpy() for name, value in state.items() if not name.startswith("grid.")})


def modulate(scaled: Tensor, field: Tensor) -> Tensor:
    """Scaled activity of pixels after a field.

    With A_k = s a_k it is s exp(u_{K+1}) softmax_k(log a_k + u_k); a metagene without activity stays without. u_{K+1}
    is held within MOST: where the network sees glass its size is near zero, and a factor that would lift it to the
    counts of a spot is another one in each sample.

    Args:
        scaled: A `(..., K)` [1/px].
        field: u `(..., K + 1)`.
    """
    tilted = scaled * (field[..., :-1] - field[..., :-1].amax(dim=-1, keepdim=True)).exp()
    size = scaled.sum(dim=-1, keepdim=True) * field[..., -1:].clamp(-MOST, MOST).exp()
    return tilted * (size / tilted.sum(dim=-1, keepdim=True).clamp_min(1e-30))


def fit_field(
    run: Run,
    section: Section,
    *,
    conditions: dict[str, str] | None = None,
    keep: NDArray[np.bool_] | None = None,
    steps: int = 300,
    learning_rate: float = 0.05,
    seed: int = 0,
    show: Show | None = None,
) -> SectionField:
    """Fit field and effects of a measured section, by stochastic variational inference on its spots.

    Args:
        run: of `load_run`.
        section: with counts, at the run's resolution or finer.
        conditions: level of covariates, as in `predict`.
        keep: spots whose counts are used `(S,)`; None takes all.
        steps: optimisation steps, at least; more where the spots take turns and would have fewer than ROUNDS.
        learning_rate: of Adam, falling to zero by a half cosine. Of n turns a node has its gradient in one, n-fold, and
            Adam, which divides by the root of the mean square, moves it by sqrt(n) rates where n steps on all spots
            would move it by n. So the rate is times sqrt(n), but a node that moved by n = MOST_A_TURN and farther at
            once would overshoot: from there on it is times MOST_A_TURN / sqrt(n).
        seed: of the noise.
        show: called after each step with the share done and the seconds spent.

    Raises:
        RunError: the section has no counts, no gene of the run, or no spot to fit.
        ResolutionError: the section is coarser than the run.
    """
    counts, genes = _counts_of(run, section, keep)
    started = time.monotonic()
    torch.manual_seed(seed)
    canvas = canvas_of(section, run.mpp, find_tissue)
    pixels = spot_pixels(run.network, section, canvas, seed=seed, colours=colours_over(run, canvas))
    log_rate, logit = (
        torch.from_numpy(part) for part in mean_rates(run.network, choose_conditions(run, section, conditions))
    )
    grid = FieldGrid.over_spots(*(section.spots[name].to_numpy(np.float64) for name in ("x_um", "y_um")))
    weights = grid.weights(pixels.x_um, pixels.y_um)
    shape = (run.network.arch.n_metagenes + 1, grid.height, grid.width)
    mean = torch.zeros(shape, requires_grad=True)
    log_sd = torch.full(shape, -1.5, requires_grad=True)
    log_precision = torch.full((shape[0],), 1.0, requires_grad=True)
    beta, gamma = (torch.zeros(len(genes), requires_grad=True) for _ in range(2))
    beta_k = torch.zeros(run.network.arch.n_metagenes, len(genes), requires_grad=True)
    parameters = [mean, log_sd, log_precision, beta, beta_k, gamma]
    used = np.arange(counts.shape[0]) if keep is None else np.flatnonzero(keep)
    draw, n_turns = np.random.default_rng(seed), math.ceil(len(used) / SPOTS_A_STEP)
    steps = max(steps, ROUNDS * n_turns) if n_turns > 1 else steps
    pace = learning_rate * min(n_turns, MOST_A_TURN) / math.sqrt(n_turns)
    optimizer = torch.optim.Adam(parameters, lr=pace, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    turns: list[NDArray[np.int64]] = []
    for step in range(steps):
        if step == 0 or n_turns > 1:
            turns = turns or np.array_split(draw.permutation(used), n_turns)
            seen = _seen(pixels, weights, counts, np.sort(turns.pop()))
        n_seen = len(seen.counts)
        field = mean + log_sd.exp() * torch.randn(shape)
        scaled = modulate(seen.scaled, torch.sparse.mm(seen.weights, field.flatten(1).T))  # (P', K)
        size = sum_over_spots(scaled, torch.ones(len(scaled), 1), seen.spot, n_spots=n_seen)
        rate = (log_rate[:, genes] + beta + beta_k).exp()  # (K, G)
        mass = spot_log_prob(seen.counts, size, rate, logit[genes] + gamma)
        prior = sum(effect.square().sum() for effect in (beta, beta_k, gamma)) / (2 * EFFECT_SD**2)
        loss = field_divergence(mean, log_sd, log_precision, grid) + prior - mass.sum() * (len(used) / n_seen)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if show is not None:
            show((step + 1) / steps, time.monotonic() - started)
    effects = np.zeros((len(beta_k) + 1, run.network.arch.n_genes), np.float32)
    effects[:, genes.numpy()] = torch.cat([beta + beta_k, gamma[None]]).detach().numpy()
    found = (mean.detach().numpy(), log_sd.detach().exp().numpy(), log_precision.detach().numpy())
    return SectionField(grid, *found, effects[:-1], effects[-1])


@dataclass(frozen=True, eq=False)
class SpotPixels:
    """What the network says of the pixels of a section's spots.

    Attributes:
        scaled: mean over the draws of the scaled activity `(P, K)` [1/px].
        spot: spot of each pixel `(P,)` int64, from 1.
        x_um: of the pixels' centres `(P,)`.
        y_um: the same.
    """

    scaled: Tensor
    spot: Tensor
    x_um: NDArray[np.float64]
    y_um: NDArray[np.float64]


class _Seen(NamedTuple):
    """What one step of the fit looks at: the pixels of some spots `(P', ...)` and their counts `(n, G')`."""

    scaled: Tensor
    spot: Tensor
    weights: Tensor
    counts: Tensor


def _seen(pixels: SpotPixels, weights: Tensor, counts: csr_matrix, rows: NDArray[np.int64]) -> _Seen:
    """The pixels and counts of some spots, which become spots 1 to n; `weights` of the nodes at all pixels."""
    number = torch.zeros(counts.shape[0] + 1, dtype=torch.int64)
    number[torch.from_numpy(rows + 1)] = torch.arange(1, len(rows) + 1)
    spot = number[pixels.spot]
    kept = spot.nonzero().squeeze(1)
    return _Seen(pixels.scaled[kept], spot[kept], select_rows(weights, kept), rows_of(counts, rows))


def spot_pixels(
    network: FusionVAE,
    section: Section,
    canvas: Canvas,
    *,
    tile_px: int = 1024,
    seed: int = 0,
    colours: ColourPlane | None = None,
) -> SpotPixels:
    """Draw z over the tiles of a section as `predict` does, once an orientation, and keep the pixels of its spots.

    The mean of z would not do: where the network is unsure, its map at that mean is far from the mean of its maps.
    """
    label = spot_labels(section.at(canvas.mpp))
    label = np.where(label > section.n_spots, 0, label)
    sampler = TileSampler(network, samples=ORIENTATIONS, seed=seed)
    found: list[Tensor] = []
    places: list[tuple[NDArray[np.int64], ...]] = []
    for tile in tissue_tiles(label > 0, tile_px):
        row, col = np.nonzero(label[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width])
        part = read_part(canvas, sampler, tile, colours)
        mean = np.zeros((network.arch.n_metagenes, tile.height, tile.width), np.float32)
        for _, values in draw_part(sampler, part):
            mean[(slice(None), *part.place)] += values / ORIENTATIONS
        found.append(torch.from_numpy(mean[:, row, col].T))
        places.append((row + tile.row, col + tile.col))
    row, col = (np.concatenate(part) for part in zip(*places, strict=True))
    spot = torch.from_numpy(label[row, col].astype(np.int64))
    x_um, y_um = (np.asarray(part + 0.5, np.float64) * canvas.mpp for part in (col, row))
    return SpotPixels(torch.cat(found), spot, x_um, y_um)


def _counts_of(run: Run, section: Section, keep: NDArray[np.bool_] | None) -> tuple[csr_matrix, Tensor]:
    """Counts of the section's genes that the run has `(S, G')`, and their places in the run `(G',)`."""
    if not section.has_counts:
        raise RunError(
            f"a field is fitted to counts, but {section.name} holds a slide alone; predict it without a field."
        )
    at = section.genes.index.get_indexer(pd.Index(run.genes))
    genes = np.flatnonzero(at >= 0)
    if not len(genes):
        raise RunError(
            f"{section.name} must share genes with the run, but none of its {section.n_genes} is among the run's "
            f"{len(run.genes)} ({run.genes[0]}, ...); check that both use symbols, or both ids."
        )
    if keep is not None and (keep.shape != (section.n_spots,) or not keep.any()):
        raise RunError(f"keep must choose among {section.n_spots} spots, got {int(keep.sum())} of {keep.shape}.")
    table = section.counts[:, at[genes]].tocsr()
    table.eliminate_zeros()
    if not (table if keep is None else table[np.flatnonzero(keep)]).nnz:
        raise RunError(f"a field needs UMIs of the run's genes, but the spots of {section.name} hold none.")
    return table, torch.from_numpy(genes)
