"""Find genes of a run by name, and say of an unknown one which may be meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from superst_monai.errors import RunError


def find_genes(names: Sequence[str] | None, known: Mapping[str, int]) -> NDArray[np.int64]:
    """Positions of genes; all if no names are given.

    Args:
        names: of the genes.
        known: position of each gene of the run.

    Raises:
        RunError: all unknown names, with those that they may have meant.
    """
    if names is None:
        return np.arange(len(known))
    unknown = [name for name in names if name not in known]
    if unknown:
        hints = "; ".join(f"{name!r}{_hint(name, known)}" for name in unknown[:10])
        raise RunError(f"the run has {len(known)} genes, but not {hints}; see .genes for all names.")
    return np.array([known[name] for name in names], dtype=np.int64)


def _hint(name: str, known: Mapping[str, int]) -> str:
    """Names much like one that is unknown."""
    folded = {gene.casefold(): gene for gene in known}
    near = [folded[found] for found in difflib.get_close_matches(str(name).casefold(), folded)]
    return f" (did you mean {', '.join(near)}?)" if near else ""
