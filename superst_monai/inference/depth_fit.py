"""Fit the second reading of depth of a trained run: regression, its level, and how much it counts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from superst_monai.data.atomic import scratch_folder
from superst_monai.data.section import Section
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.depth import FARTHEST, FILE, DepthReading
from superst_monai.inference.rates import choose_conditions, mean_rates
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.section_field import spot_pixels
from superst_monai.inference.slide_map import Show
from superst_monai.inference.withheld import training_sections
from superst_monai.model.field import FieldGrid
from superst_monai.transforms.tissue import find_tissue

_LOG = logging.getLogger(__name__)
Floats = NDArray[np.float64]
EQUAL, EQUAL_SD = 0.5, 0.2
"""Law of the share before the withheld spots are looked at: they are few, and of sections that the network knows."""
PENALTIES = tuple(np.logspace(1.5, 4, 11))
"""Penalties of the ridge regression that its leave-one-out error chooses from."""


@dataclass(frozen=True, eq=False)
class SpotDepths:
    """What is known of the depths of the spots of one section.

    Attributes:
        log_umis: observed, log UMIs per um^2 `(S,)`; those of the other methods are in the same unit.
        network: said by the network `(S,)`.
        features: of the colours round each spot `(S, F)`.
        weight: UMIs of the spot by the mean of the section `(S,)`.
        withheld: spots that the training did not see `(S,)` bool.
        umis: UMIs of one unit of each metagene's scaled activity `(K,)`.
        sigma_um: standard deviation of the places in a spot, in x or y.
    """

    log_umis: Floats
    network: Floats
    features: Floats
    weight: Floats
    withheld: NDArray[np.bool_]
    umis: Floats
    sigma_um: float


def fit_depth(
    run_dir: str | Path, *, show: Show | None = None, tell: Callable[[str], None] = _LOG.warning
) -> DepthReading | None:
    """Fit the second reading of a run on its training sections and write `depth.json`; before fields and intervals.

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
        tell(f"depths are as the network reads them, without a regression on colours: {known}")
        return None
    depths = []
    for section, rows in known:
        depths.append(spot_depths(run, section, rows))
        if show is not None:
            show(len(depths) / len(known), time.monotonic() - started)
    reading = regress(depths)
    with scratch_folder(path) as scratch:
        (scratch / FILE).write_text(reading.to_json(run.weights_sha256))
        os.replace(scratch / FILE, path)
    return reading


def spot_depths(run: Run, section: Section, withheld: NDArray[np.int64]) -> SpotDepths:
    """Observed depths of the spots of a training section, those that the network says, and the colours round them.

    Args:
        run: of `load_run`.
        section: with counts.
        withheld: rows of the spots that the training did not see.
    """
    canvas = canvas_of(section, run.mpp, find_tissue)
    log_rate, logit = mean_rates(run.network, choose_conditions(run, section, None))
    umis = np.exp(log_rate.astype(np.float64) + logit).sum(axis=1)
    pixels = spot_pixels(run.network, section, canvas, seed=int(run.record["seed"]))
    spot = pixels.spot.numpy() - 1
    n_px = np.bincount(spot, minlength=section.n_spots)
    said = np.bincount(spot, pixels.scaled.double().numpy() @ umis, section.n_spots)
    half, shape = canvas.stains.cell_um / 2, canvas.stains.planes.shape[1:]
    weights = FieldGrid(half, half, canvas.stains.cell_um, *shape).weights(pixels.x_um, pixels.y_um)
    planes = torch.from_numpy(np.stack([plane.ravel() for plane in canvas.stains.features()], axis=1))
    colours = torch.sparse.mm(weights, planes).double()  # (P, F)
    features = torch.zeros(section.n_spots, planes.shape[1], dtype=torch.double).index_add(0, pixels.spot - 1, colours)
    columns = section.genes.index.get_indexer(pd.Index(run.genes))
    total = np.asarray(section.counts[:, columns].sum(axis=1), np.float64).ravel()
    seen = n_px > 0
    area = n_px[seen] * canvas.mpp**2
    radius_um = section.spots["radius_um"].to_numpy(np.float64)
    return SpotDepths(
        log_umis=np.log(total[seen] + 0.5) - np.log(area),
        network=np.log(np.maximum(said[seen], 1e-9)) - np.log(area),
        features=features.numpy()[seen] / n_px[seen, None],
        weight=total[seen] / max(total[seen].mean(), 1.0),
        withheld=np.isin(np.flatnonzero(seen), withheld),
        umis=umis,
        sigma_um=float(radius_um.mean()) / 2,
    )


def regress(sections: Sequence[SpotDepths]) -> DepthReading:
    """Regress depths on colours, each section with a level of its own, and weigh the result against the network.

    Errors of either reading are relative to the section's level, and spots count by their UMIs. With r_n and r_t the
    errors of network and regression on the withheld spots, the share q minimises sum w ((1 - q) r_n + q r_t)^2 / s2 +
    (q - EQUAL)^2 / EQUAL_SD^2, s2 the mean square error at q = EQUAL.

    Args:
        sections: at least one, each with a spot that was not withheld.
    """
    fitted = [~part.withheld for part in sections]
    features, weight = (
        np.concatenate([getattr(part, name)[kept] for part, kept in zip(sections, fitted, strict=True)])
        for name in ("features", "weight")
    )
    level = [
        {name: np.average(getattr(part, name)[kept], weights=part.weight[kept]) for name in ("log_umis", "network")}
        for part, kept in zip(sections, fitted, strict=True)
    ]
    target = np.concatenate(
        [part.log_umis[kept] - own["log_umis"] for part, kept, own in zip(sections, fitted, level, strict=True)]
    )
    mean, sd = features.mean(axis=0), features.std(axis=0) + 1e-6
    ridge = RidgeCV(PENALTIES).fit((features - mean) / sd, target, sample_weight=weight)

    def said(part: SpotDepths) -> Floats:
        return np.asarray(ridge.predict(np.clip((part.features - mean) / sd, -FARTHEST, FARTHEST)))

    errors = np.concatenate(
        [
            np.stack(
                [
                    part.log_umis - own["log_umis"] - (part.network - own["network"]),
                    part.log_umis - own["log_umis"] - said(part),
                    part.weight,
                ]
            )[:, part.withheld]
            for part, own in zip(sections, level, strict=True)
        ],
        axis=1,
    )
    # The network's own level, so that both readings agree on average over the training spots.
    shift = np.average([own["network"] for own in level], weights=[kept.sum() for kept in fitted])
    return DepthReading(
        share=share_of(*errors),
        sigma_um=float(np.mean([part.sigma_um for part in sections])),
        intercept=float(ridge.intercept_ + shift),
        weights=tuple(map(float, ridge.coef_)),
        mean=tuple(map(float, mean)),
        sd=tuple(map(float, sd)),
        umis=tuple(map(float, np.exp(np.mean([np.log(part.umis) for part in sections], axis=0)))),
        n_spots=len(target),
        n_withheld=errors.shape[1],
    )


def share_of(network: Floats, regression: Floats, weight: Floats) -> float:
    """Share q of the regression, from the errors of both on withheld spots; see `regress`.

    Args:
        network: its errors `(S,)`.
        regression: its errors `(S,)`.
        weight: of the spots `(S,)`.
    """
    apart = network - regression
    noise = float((weight * ((1 - EQUAL) * network + EQUAL * regression) ** 2).sum() / max(weight.sum(), 1e-9))
    belief = max(noise, 1e-9) / EQUAL_SD**2
    best = ((weight * network * apart).sum() + belief * EQUAL) / ((weight * apart**2).sum() + belief)
    return float(np.clip(best, 0.0, 1.0))
