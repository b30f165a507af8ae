"""Several posterior maps of one run, side by side: their names, and that they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from superst_monai.errors import RunError
from superst_monai.inference.conditions import under
from superst_monai.inference.maps import Maps, open_maps


class Named(NamedTuple):
    """Maps and what figures and tables call them."""

    name: str
    maps: Maps


def open_several(
    paths: Sequence[Path | str], *, conditions: Mapping[str, str | None] | None = None, cache_mib: int = 256
) -> list[Named]:
    """Open maps under names of their own: the stem of the file, with a number where it is taken.

    Args:
        paths: stores of posterior maps.
        conditions: level that a covariate is set to, or None to take its effect out; see `inference.conditions.under`.
        cache_mib: memory for decoded tiles of each [MiB].

    Raises:
        StoreError: a store cannot be read.
        RunError: a condition is not of the run.
    """
    found: list[Named] = []
    for path in map(Path, paths):
        stem = path.name.removesuffix(".zarr").removesuffix(".maps")
        taken = {one.name for one in found}
        number = next(i for i in range(1, len(found) + 2) if (stem if i == 1 else f"{stem}_{i}") not in taken)
        name = stem if number == 1 else f"{stem}_{number}"
        found.append(Named(name, under(open_maps(path, cache_mib=cache_mib), conditions or {})))
    return found


def require_one_run(several: Sequence[Named]) -> None:
    """Refuse maps whose samples are not joint: sample n of one and of another must hold the same metagenes.

    Raises:
        RunError: they differ in the weights of the run, in genes, seed or number of samples; all that differ.
    """
    first = several[0]
    faults = []
    for other in several[1:]:
        ours, theirs = first.maps, other.maps
        same = {
            "weights of the run": ours.record.get("run_sha256") == theirs.record.get("run_sha256"),
            "genes": ours.genes == theirs.genes,
            "seed": ours.record.get("seed") == theirs.record.get("seed"),
            "number of samples": ours.n_samples == theirs.n_samples,
        }
        differ = [what for what, equal in same.items() if not equal]
        if differ:
            faults.append(f"{other.name} differs from {first.name} in {', '.join(differ)}")
    if faults:
        raise RunError(
            f"maps that are analysed together must be of one run, seed and number of samples, but {'; '.join(faults)}; "
            "predict them again from one run with one --seed and one --samples."
        )


def tissue_sizes(maps: Maps) -> NDArray[np.float64]:
    """Metagene sizes of the tissue of a section as a whole `(N, K)`: the scaled activity summed over its pixels.

    Raises:
        RunError: nothing is predicted on the tissue.
    """
    sizes = maps.size_of(maps.tissue.astype(np.uint8), n_supports=1)[:, 0].astype(np.float64)
    if not (sizes.sum(axis=1) > 0).all():
        raise RunError(
            f"maps of {maps.record.get('source')} must expect expression on the tissue, got none; predict again."
        )
    return sizes


def without_effects(one: Named) -> Named:
    """The same maps with the effects of all covariates taken out, so that sections can be compared.

    Raises:
        RunError: the store holds no effects of the covariates that its run has.
    """
    covariates = dict.fromkeys(one.maps.record.get("conditions", {}))
    return one._replace(maps=under(one.maps, covariates))
