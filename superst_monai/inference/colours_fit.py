"""Fit the second reading of a trained run: its regressions, their level, and how much they count."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from torch import Tensor

from superst_monai.data.atomic import scratch_folder
from superst_monai.inference.colour_basis import Basis
from superst_monai.inference.colours import FILE, ColourReading
from superst_monai.inference.run import load_run
from superst_monai.inference.section_field import SPOTS_A_STEP
from superst_monai.inference.slide_map import Show
from superst_monai.inference.spot_readings import SpotReadings, spot_readings
from superst_monai.inference.withheld import training_sections
from superst_monai.model.likelihood import spot_log_prob
from superst_monai.transforms.counts import rows_of

_LOG = logging.getLogger(__name__)
Floats = NDArray[np.float64]
EQUAL, EQUAL_SD = 0.5, 0.1
"""Law of either part before the withheld spots are looked at: they are few, and of sections that the network knows."""
PARTS = np.linspace(0.0, 1.0, 41)
"""Parts in the composition that are tried."""
PENALTIES = tuple(np.logspace(1.5, 4, 11))
"""Penalties of the regression of depths that its leave-one-out error chooses from."""
STEPS, RATE = 250, 0.1
"""Of the optimisation of the weights of a composition."""


def fit_colours(
    run_dir: str | Path, *, show: Show | None = None, tell: Callable[[str], None] = _LOG.warning
) -> ColourReading | None:
    """Fit the second reading of a run on its training sections and write it; before fields and intervals.

    Args:
        run_dir: of a finished run whose training sections lie where they did.
        show: called with the share done and the seconds spent.
        tell: receives why there is none, where there can be none.

    Returns:
        What was written; None where no spots were withheld, or sections have gone or changed.

    Raises:
        SuperstError: a section cannot be read or drawn, or the folder cannot be written.
    """
    run, started = load_run(run_dir), time.monotonic()
    path = run.path / FILE
    path.unlink(missing_ok=True)
    known = training_sections(run)
    if isinstance(known, str):
        tell(f"expression is as the network reads it, without a regression on colours: {known}")
        return None
    spots = []
    for section, blocks in known:
        spots.append(spot_readings(run, section, blocks))
        if show is not None:
            show(len(spots) / (len(known) + 1), time.monotonic() - started)
    active = run.network.generative.active.cpu().numpy()
    reading = regress(spots, active=active, seed=int(run.record["seed"]))
    with scratch_folder(path) as scratch:
        (scratch / FILE).write_text(reading.to_json(run.weights_sha256))
        os.replace(scratch / FILE, path)
    if show is not None:
        show(1.0, time.monotonic() - started)
    return reading


def regress(sections: Sequence[SpotReadings], *, active: NDArray[np.bool_], seed: int) -> ColourReading:
    """Fit both regressions to the spots that the training saw, and their parts to those that it did not.

    Depths: ridge regression of log UMIs per area, relative to the section's level; spots count by their UMIs. Its level
    is that of the network, so that both readings agree on average.

    Args:
        sections: at least one, each with a spot that was not withheld.
        active: metagenes that are in use `(K,)`.
        seed: of the spots that a step looks at.
    """
    kept = [~part.withheld for part in sections]
    features = np.concatenate([part.features[rows] for part, rows in zip(sections, kept, strict=True)])
    basis = Basis.of(features, seed=seed)
    weight = np.concatenate([part.weight[rows] for part, rows in zip(sections, kept, strict=True)])
    observed, said = (
        [
            values - np.average(values[rows], weights=part.weight[rows])
            for part, rows, values in zip(sections, kept, each, strict=True)
        ]
        for each in ([part.log_umis for part in sections], [part.network for part in sections])
    )
    target = np.concatenate([values[rows] for values, rows in zip(observed, kept, strict=True)])
    ridge = RidgeCV(PENALTIES).fit(basis.scaled(features), target, sample_weight=weight)
    errors = [
        np.stack([y - n, y - ridge.predict(basis.scaled(part.features)), part.weight])[:, part.withheld]
        for y, n, part in zip(observed, said, sections, strict=True)
    ]
    by_network, by_regression, counted = np.concatenate(errors, axis=1)
    first = np.cumsum([0, *(int(part.block.max()) + 1 for part in sections)])  # block of each section
    block = np.concatenate([part.block[part.withheld] + i for part, i in zip(sections, first, strict=False)])
    level = np.average(
        np.concatenate([part.network[rows] for part, rows in zip(sections, kept, strict=True)]), weights=weight
    )
    intercept, weights = fit_composition(sections, basis, active, seed=seed)
    linear, kernel = basis.unfolded(weights)
    return ColourReading(
        depth_share=depth_share_of(by_network, by_regression, counted, block),
        composition_share=composition_share_of(sections, [intercept + basis(p.features) @ weights for p in sections]),
        sigma_um=float(np.mean([part.sigma_um for part in sections])),
        intercept=float(ridge.intercept_ + level),
        weights=tuple(map(float, ridge.coef_)),
        composition_intercept=tuple(map(float, intercept)),
        composition_weights=tuple(tuple(map(float, line)) for line in linear.T),
        landmarks=tuple(tuple(map(float, line)) for line in basis.landmarks),
        composition_kernel=tuple(tuple(map(float, line)) for line in kernel.T),
        mean=tuple(map(float, basis.mean)),
        sd=tuple(map(float, basis.sd)),
        umis=tuple(map(float, np.exp(np.mean([np.log(part.umis) for part in sections], axis=0)))),
        n_spots=len(target),
        n_withheld=sum(int(part.withheld.sum()) for part in sections),
    )


def depth_share_of(network: Floats, regression: Floats, weight: Floats, block: NDArray[np.int64]) -> float:
    """Part q of a regression of depths, see `part_of`, from the errors of both readings on withheld spots.

    Their log likelihood is that of normal errors (1 - q) r_n + q r_t, with the mean square error at q = EQUAL for
    variance and as many times as a spot weighs.

    Args:
        network: its errors r_n `(S,)`.
        regression: its errors r_t `(S,)`.
        weight: of the spots `(S,)`.
        block: of the spots `(S,)`.
    """
    errors = network[:, None] + PARTS * (regression - network)[:, None]  # (S, len(PARTS))
    square = weight[:, None] * errors**2
    noise = float(square[:, PARTS == EQUAL].sum() / max(weight.sum(), 1e-9))
    return part_of(_of_blocks(-square / (2 * max(noise, 1e-9)), block))


def fit_composition(
    sections: Sequence[SpotReadings], basis: Basis, active: NDArray[np.bool_], *, seed: int
) -> tuple[Floats, Floats]:
    """Regress the metagenes' shares on colours: P = softmax(b + W^T f), at the UMIs that each spot has.

    Largest posterior under the model's own law of counts, W ~ Normal(0, 1) of the functions f of the basis and
    b ~ Normal(0, 5^2); a step of Adam looks at SPOTS_A_STEP spots of all sections at most.

    Returns:
        b `(K,)`, far below zero where a metagene is not in use, and W `(F + R, K)`.
    """
    draw, n_fit = np.random.default_rng(seed), sum(int((~part.withheld).sum()) for part in sections)
    start = torch.from_numpy(np.where(active, 0.0, -30.0).astype(np.float32))
    bias = torch.zeros(len(active), requires_grad=True)
    inputs = [torch.from_numpy(basis(part.features)).float() for part in sections]
    weights = torch.zeros(inputs[0].shape[1], len(active), requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    laws = [(torch.from_numpy(p.log_rate).exp(), torch.from_numpy(p.logit).float()) for p in sections]
    rows = [np.flatnonzero(~part.withheld) for part in sections]
    looked_at = min(1.0, SPOTS_A_STEP / n_fit)
    chosen, counts = rows, [rows_of(part.counts, kept) for part, kept in zip(sections, rows, strict=True)]
    for _ in range(STEPS):
        if looked_at < 1:
            chosen = [np.sort(draw.choice(kept, max(1, int(looked_at * len(kept))), replace=False)) for kept in rows]
            counts = [rows_of(part.counts, few) for part, few in zip(sections, chosen, strict=True)]
        mass = torch.zeros(())
        for part, law, seen, few, x in zip(sections, laws, counts, chosen, inputs, strict=True):
            scores = torch.log_softmax(start + bias + x[torch.from_numpy(few)] @ weights, dim=1)
            mass = mass + _mass(part, law, seen, few, scores).sum()
        prior = weights.square().sum() / 2 + bias.square().sum() / (2 * 25.0)
        loss = prior - mass * (n_fit / sum(map(len, chosen)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    found = (start + bias).detach().double().numpy()
    return found, weights.detach().double().numpy()


def composition_share_of(sections: Sequence[SpotReadings], scores: Sequence[Floats]) -> float:
    """Part q' of a regression of the metagenes' shares, see `part_of`, from the withheld spots.

    In float64: curvatures are differences of log likelihoods of 10^5 nats.

    Args:
        sections: of the training.
        scores: logits that the regression says of each section's spots `(S, K)`.
    """
    masses = []
    for part, said in zip(sections, scores, strict=True):
        rows = np.flatnonzero(part.withheld)
        law = torch.from_numpy(part.log_rate).double().exp(), torch.from_numpy(part.logit).double()
        network, other, counts = part.shares()[rows], said[rows], rows_of(part.counts, rows).double()
        both = [torch.from_numpy((1 - q) * network + q * other).log_softmax(dim=1) for q in PARTS]
        mass = torch.stack([_mass(part, law, counts, rows, shares) for shares in both], dim=1).numpy()
        masses.append(_of_blocks(mass, part.block[rows]))
    return part_of(np.concatenate(masses))


def _of_blocks(mass: Floats, block: NDArray[np.int64]) -> Floats:
    """Sum the log likelihoods of spots `(S, J)` over each of n blocks `(n, J)`."""
    number = np.unique(block, return_inverse=True)[1]
    found = np.zeros((int(number.max(initial=-1)) + 1, mass.shape[1]))
    np.add.at(found, number, mass)
    return found


def part_of(mass: Floats) -> float:
    """Part of a regression, on the grid PARTS: of the largest posterior given what each withheld block says of it.

    Spots say it surely, compositions with thousands of UMIs, but others would say otherwise: they differ by far more
    than a law that fits none of them exactly, and neighbours err alike, in depths too. So the log likelihood is
    weighed by h / J, its curvature at its maximum over the scatter of the blocks' slopes there, 1 at most, which gives
    the maximum its variance J / h^2 over blocks. J is itself known from n blocks alone, so the weighed log likelihood l
    becomes Student's, -(n / 2) log(1 + 2 (max l - l) / (n - 1)), as for a mean whose variance is unknown: two blocks
    that agree by chance do not outvote EQUAL. Where l does not bend down that decides.

    Args:
        mass: log likelihood of each block of spots under each part `(n, len(PARTS))` [nat].

    Source: the magnitude adjustment of a misspecified likelihood (Pauli, Racugno & Ventura, Bayesian composite marginal
        likelihoods, Statistica Sinica 21, 2011; White, Econometrica 50, 1982, doi:10.2307/1912526, for the variance;
        Gelman et al., Bayesian Data Analysis, 2013, section 3.2, for Student's law).
    """
    before = -((PARTS - EQUAL) ** 2) / (2 * EQUAL_SD**2)
    if len(mass) < 2:
        return EQUAL
    whole, step = mass.sum(axis=0), PARTS[1] - PARTS[0]
    best = int(np.clip(whole.argmax(), 1, len(PARTS) - 2))
    slope = (mass[:, best + 1] - mass[:, best - 1]) / (2 * step)
    bend = -(whole[best + 1] - 2 * whole[best] + whole[best - 1]) / step**2
    scatter = len(mass) * slope.var(ddof=1)
    worth = float(np.clip(bend / max(scatter, 1e-12), 0.0, 1.0))
    said = -len(mass) / 2 * np.log1p(2 * worth * (whole.max() - whole) / (len(mass) - 1))
    return float(PARTS[np.argmax(said + before)])


def _mass(
    part: SpotReadings, law: tuple[Tensor, Tensor], counts: Tensor, rows: NDArray[np.int64], log_shares: Tensor
) -> Tensor:
    """Log mass of the counts of some spots `(n,)`, given their UMIs and the log shares of the metagenes `(n, K)`."""
    shares = log_shares.exp()
    total, umis = (torch.from_numpy(each).to(shares) for each in (part.total[rows], part.umis))
    size = total / (shares @ umis)
    return spot_log_prob(counts, shares * size[:, None], *law)
