"""Posterior samples of what a gene does: its log rate in each metagene and its logit, under a slide's conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.inference.run import Run
from superst_monai.model.guide import MeanField
from superst_monai.model.objective import FusionVAE

Floats = NDArray[np.float32]
_GLOBAL_STREAM = 1  # spawn key beside that of z
ANOTHER = "(another)"
"""Name of a level that is none of the training, see `another_level`."""


@dataclass(frozen=True, eq=False)
class Effects:
    """N joint draws of what each of the J levels of all covariates adds to a gene.

    Attributes:
        rows: covariate and level of each of the J rows; with ANOTHER last where a slide is of another level.
        log_rate: beta, `(N, J, G)`.
        logit: gamma, `(N, J, G)`.
    """

    rows: list[tuple[str, str]]
    log_rate: Floats
    logit: Floats


@dataclass(frozen=True, eq=False)
class RateSamples:
    """N joint draws of the global variables.

    Attributes:
        log_rate: log r_nkg, `(N, K, G)`.
        logit: `(N, G)`.
        levels: level of each covariate in each sample.
        effects: those that the former two contain, and those of the other levels; None without covariates.
    """

    log_rate: Floats
    logit: Floats
    levels: Mapping[str, list[str]]
    effects: Effects | None = None


def choose_conditions(run: Run, source: object, given: Mapping[str, str] | None) -> dict[str, str | None]:
    """Level of each covariate of the run on a slide: the given one, else what the section says, else unknown.

    Args:
        run: knows the levels, and the column of the spot table that each covariate was read from.
        source: a Section is asked for its column; anything else says nothing.
        given: levels that the user states.

    Returns:
        One entry a covariate of the run; None is unknown.

    Raises:
        RunError: a covariate or level that the run does not have; all faults.
    """
    known, stated = run.covariates, dict(given or {})
    faults = []
    for name, level in stated.items():
        if name not in known:
            have = f"its covariates are {', '.join(known)}" if known else "it has no covariates"
            faults.append(f"{name}={level} names no covariate of this run: {have}; leave --condition out")
        elif level not in known[name]:
            faults.append(
                f"{name}={level} is not among the levels {', '.join(known[name])} of this run; "
                "leave --condition out to average over them"
            )
    if faults:
        raise RunError("; ".join(faults) + ".")
    columns = run.record.get("covariate_columns", {})
    return {c: stated.get(c) or _level_of(source, columns.get(c, c), levels) for c, levels in known.items()}


def _level_of(source: object, column: str, levels: list[str]) -> str | None:
    """The one known level that a section's column holds."""
    if not isinstance(source, Section) or column not in source.spots:
        return None
    values = source.spots[column].dropna().astype(str).unique()
    return str(values[0]) if len(values) == 1 and values[0] in levels else None


def another_level(network: FusionVAE) -> dict[str, float]:
    """Covariates of which a slide without a known level is of a level that the training never saw, and how they spread.

    These are the covariates with levels of one training section each, as `section` itself. Let the effects of J such
    levels and of another be independent draws of one law of variance s2. The other lies around the mean of the J with
    variance s2 (1 + 1 / J), they themselves with s2 (1 - 1 / J): a level that is drawn among the J has to be moved
    away from their mean by the factor sqrt((J + 1) / (J - 1)).

    Returns:
        The factor by covariate.
    """
    found = {}
    for row, (name, levels) in zip(network.generative.condition.tolist(), network.arch.covariates.items(), strict=True):
        if len(levels) > 1 and sorted(row) == list(range(len(levels))):
            found[name] = float(np.sqrt((len(levels) + 1) / (len(levels) - 1)))
    return found


def draw_rates(network: FusionVAE, conditions: Mapping[str, str | None], *, samples: int, seed: int) -> RateSamples:
    """Draw profiles and effects from the guide; an unknown condition is drawn too, each level as likely as any other.

    Where the slide must be of another level, the drawn one is moved away from the mean, see `another_level`.

    log r_nkg = log r_g + sum_c beta_{c, j(n, c), g} + w_kg and logit_ng = l_g + sum_c gamma_{c, j(n, c), g}.

    Args:
        network: on the CPU or not; the numbers are drawn on the CPU.
        conditions: level of each covariate, None where unknown.
        samples: N.
        seed: sample n of a seed is the same whatever N.
    """
    guide, model, known = network.guide, network.generative, network.arch.covariates
    baseline, logit_baseline = _array(model.log_rate), _array(model.logit)
    profile = _law(guide.profile)
    laws = {c: (_law(guide.rate_effect[c]), _law(guide.logit_effect[c])) for c in known}
    another = {c: spread for c, spread in another_level(network).items() if conditions[c] is None}
    rows = [(c, level) for c, names in known.items() for level in (*names, *[ANOTHER] * (c in another))]
    log_rate = np.empty((samples, *profile[0].shape), np.float32)
    logit = np.empty((samples, len(baseline)), np.float32)
    effects = Effects(rows, *(np.empty((samples, len(rows), len(baseline)), np.float32) for _ in range(2)))
    levels: dict[str, list[str]] = {c: [] for c in known}
    for n in range(samples):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(n, _GLOBAL_STREAM)))
        log_rate[n] = baseline + profile[0] + profile[1] * rng.standard_normal(profile[0].shape, np.float32)
        logit[n] = logit_baseline
        for c, names in known.items():
            drawn = names[int(rng.integers(len(names)))]  # also where the level is known: the stream stays in step
            levels[c].append(conditions[c] or (ANOTHER if c in another else drawn))
            first, chosen = rows.index((c, names[0])), rows.index((c, levels[c][n]))
            own = slice(first, first + len(names))
            outs = ((log_rate[n], effects.log_rate[n]), (logit[n], effects.logit[n]))
            for (out, effect), (mean, sd) in zip(outs, laws[c], strict=True):
                effect[own] = mean + sd * rng.standard_normal(mean.shape, np.float32)
                if c in another:
                    middle = effect[own].mean(axis=0)
                    effect[chosen] = middle + another[c] * (effect[rows.index((c, drawn))] - middle)
                out += effect[chosen]
    return RateSamples(log_rate, logit, levels, effects if rows else None)


def rate_moments(network: FusionVAE, conditions: Mapping[str, str | None]) -> tuple[Floats, Floats]:
    """Exact mean and sd `(K, G)` of the log rates that `draw_rates` draws, by the law of total variance over levels."""
    guide, model = network.guide, network.generative
    profile, profile_sd = _law(guide.profile)
    mean, variance = _array(model.log_rate) + profile, profile_sd**2  # (K, G)
    for c, names in network.arch.covariates.items():
        level = conditions[c]
        chosen = slice(None) if level is None else [list(names).index(level)]
        effect, sd = (part[chosen] for part in _law(guide.rate_effect[c]))
        spread = another_level(network).get(c, 1.0) if level is None else 1.0
        mean = mean + effect.mean(0)
        variance = variance + spread**2 * effect.var(0)
        variance = variance + (sd**2).mean(0) * (spread**2 + (1 - spread**2) / len(effect))
    return mean, np.sqrt(variance)


def _law(module: nn.Module) -> tuple[Floats, Floats]:
    """Mean and sd of a mean-field normal."""
    normal = cast(MeanField, module)
    return _array(normal.mean), np.exp(_array(normal.log_sd))


def _array(value: Tensor) -> Floats:
    """A parameter as float32 on the CPU."""
    return np.asarray(value.detach().float().cpu().numpy())


def mean_rates(network: FusionVAE, conditions: Mapping[str, str | None]) -> tuple[Floats, Floats]:
    """Mean log rates `(K, G)` and logits `(G,)` under conditions; an unknown level counts as the mean of all."""
    logit = _array(network.generative.logit)
    for c, names in network.arch.covariates.items():
        level = conditions[c]
        effect = _law(network.guide.logit_effect[c])[0]
        logit = logit + (effect.mean(0) if level is None else effect[list(names).index(level)])
    return rate_moments(network, conditions)[0], logit
