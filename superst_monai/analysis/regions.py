"""Named regions of slides as masks on the pixels of their maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.analysis.several_maps import Named
from superst_monai.analysis.support_files import check_supports, open_shapes
from superst_monai.analysis.supports import SharedPixels
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps
from superst_monai.inference.sample_tiles import Place

Mask = NDArray[np.bool_]
Say: TypeAlias = Callable[[str], object]
_BOX_PX = 512
_ROUNDING = 1e-6  # of float32 shares: half of a pixel is half of it


def read_regions(
    several: Sequence[Named],
    paths: Sequence[Path | str],
    name: str,
    other: str | None = None,
    *,
    say: Say | None = None,
) -> list[tuple[Mask, Mask]]:
    """Masks of two named regions on some sections, a file of annotations for each.

    Args:
        several: the sections.
        paths: annotations of each, see `support_files.open_supports`.
        name: of the one region: a classification, or the name of an annotation or label. All that have it belong to it.
        other: of the other region; the tissue outside the first if not given.
        say: called with what was left out or changed, one sentence each.

    Returns:
        For each section pixels `(H, W)` at least half of which lies in the one and in the other region; empty where a
        section has none of the name.

    Raises:
        RunError: there is not one file for each section, or no section has a region of a name.
        SuperstError: a file cannot be read, or does not fit its slide.
    """
    if len(paths) != len(several):
        raise RunError(
            f"there must be one file of regions for each section, in their order, got {len(paths)} for {len(several)}."
        )
    found: list[tuple[Mask, Mask]] = []
    known: dict[str, None] = {}
    for one, path in zip(several, map(Path, paths), strict=True):
        check_supports("regions", path, None)
        with open_shapes(one.maps, path, "regions") as supports:
            if say is not None:
                for note in supports.notes:
                    say(f"{one.name}: {note}")
            known |= dict.fromkeys(region_names(supports))
            first = region_mask(one.maps, supports, name)
            second = one.maps.tissue & ~first if other is None else region_mask(one.maps, supports, other)
        found.append((first, second))
    missing = [wanted for wanted in (name, other) if wanted is not None and wanted not in known]
    if missing:
        more = " ..." if len(known) > 12 else ""
        raise RunError(
            f"the regions must hold {' and '.join(missing)}, but are {', '.join(list(known)[:12])}{more}; pass one of "
            "these names."
        )
    return found


def region_mask(maps: Maps, supports: SharedPixels, name: str) -> Mask:
    """Pixels `(H, W)` at least half of which lies in the annotations of one name; none if there is no such name."""
    wanted = np.any([values == name for values in _names(supports.table())], axis=0)
    mask = np.zeros(maps.shape, np.bool_)
    for place in _boxes(maps.shape):
        found = supports.shares(place)
        chosen = wanted[found.support]
        part = mask[place]
        share = np.bincount(found.pixel[chosen], found.share[chosen], minlength=part.size)
        part[...] = (share >= 0.5 - _ROUNDING).reshape(part.shape)
    return mask


def region_names(supports: SharedPixels) -> list[str]:
    """Names that `region_mask` knows: classifications first, then those of single annotations."""
    return list(dict.fromkeys(str(name) for names in _names(supports.table()) for name in names if name))


def _names(table: pd.DataFrame) -> list[NDArray[Any]]:
    """What each annotation is called `(S,)`, by class, by its own name and by its row."""
    columns = [table[column].astype(str) for column in ("classification", "name") if column in table]
    return [np.asarray(column, dtype=object) for column in (*columns, table.index.astype(str))]


def _boxes(shape: tuple[int, int]) -> Iterator[Place]:
    """Boxes that cover a map."""
    height, width = shape
    for top in range(0, height, _BOX_PX):
        for left in range(0, width, _BOX_PX):
            yield slice(top, min(top + _BOX_PX, height)), slice(left, min(left + _BOX_PX, width))
