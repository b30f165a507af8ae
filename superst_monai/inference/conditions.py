"""Posterior maps under other conditions: the effect of a covariate set to a level of the run, or taken out."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps
from superst_monai.inference.rates import Effects


def under(maps: Maps, conditions: Mapping[str, str | None]) -> Maps:
    """Maps of the same slide as if it were of other conditions: all that derives from them changes, no pixel is read.

    log r'_nkg = log r_nkg - beta_{c, j(n, c), g} + beta_{c, j', g}, and the logits alike, sample by sample, so that the
    result is what a prediction of the same seed under these conditions holds.

    Args:
        maps: of `open_maps` or of this function; it stays as it is.
        conditions: for each covariate to change a level of the run, or None to take its effect out (zero, the mean
            of its prior). The others stay.

    Returns:
        Maps that share pixels and cache with the given ones; the record says `conditions` and which are `removed`.

    Raises:
        RunError: the store holds no effects, or a covariate or level is not of the run; all faults.
    """
    if not conditions:
        return maps
    effects = _checked(maps, conditions)
    changed = copy.copy(maps)
    changed.log_rate, changed.logit = maps.log_rate.copy(), maps.logit.copy()
    said, drawn = dict(maps.record["conditions"]), dict(maps.record.get("drawn_conditions", {}))
    removed = set(maps.record.get("removed", ()))
    for name, level in conditions.items():
        before = drawn[name] if name in drawn else [None if name in removed else said[name]] * maps.n_samples
        after = [level] * maps.n_samples
        changed.log_rate += (_chosen(effects, effects.log_rate, name, after, before))[:, None]
        changed.logit += _chosen(effects, effects.logit, name, after, before)
        drawn.pop(name, None)
        said[name] = level
        removed = removed - {name} if level is not None else removed | {name}
    changed.record = {**maps.record, "conditions": said, "drawn_conditions": drawn, "removed": sorted(removed)}
    return changed


def _chosen(
    effects: Effects,
    values: NDArray[np.float32],
    name: str,
    after: list[str | None],
    before: list[str | None],
) -> NDArray[np.float32]:
    """What a change of level adds in each sample `(N, G)`."""
    found = np.zeros((len(values), values.shape[-1]), np.float32)
    for sign, levels in ((1, after), (-1, before)):
        for n, level in enumerate(levels):
            if level is not None:
                found[n] += sign * values[n, effects.rows.index((name, level))]
    return found


def _checked(maps: Maps, conditions: Mapping[str, str | None]) -> Effects:
    """The effects of maps that have these covariates and levels."""
    known = maps.record.get("conditions", {})
    effects = maps.effects
    if known and effects is None:
        raise RunError(
            "the maps must hold the effects of their covariates to change one, but they were written by a version "
            "of superst that did not store them; predict again."
        )
    rows = effects.rows if effects is not None else []
    faults = []
    for name, level in conditions.items():
        levels = [row[1] for row in rows if row[0] == name]
        if not levels:
            have = f"their covariates are {', '.join(known)}" if known else "they have no covariates"
            faults.append(f"{name} names no covariate of the maps: {have}")
        elif level is not None and level not in levels:
            faults.append(f"{name}={level} is not among the levels {', '.join(levels)}")
    if faults or effects is None:
        raise RunError("; ".join(faults) + ".")
    return effects
