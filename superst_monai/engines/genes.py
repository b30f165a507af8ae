"""Which genes a run models: those that all sections measure, counted often enough and not excluded by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from superst_monai.data.section import Section
from superst_monai.errors import RunError


def select_genes(sections: Sequence[Section], *, min_counts: int, exclude: str) -> pd.DataFrame:
    """Genes of all sections with at least `min_counts` UMIs in all and a name that `exclude` does not match.

    Args:
        sections: with counts.
        min_counts: least total over all sections [UMI].
        exclude: regular expression, matched from the start of the name; "" excludes none.

    Returns:
        Table with index `gene` and column `gene_id`, in the order of the first section.

    Raises:
        RunError: the expression is no regular expression, the sections share no gene, or none is left.
    """
    try:
        pattern = re.compile(exclude)
    except re.error as exc:
        raise RunError(f"exclude_genes must be a regular expression, got {exclude!r} ({exc}); quote it.") from exc
    names = sections[0].genes.index
    for section in sections[1:]:
        names = names[names.isin(section.genes.index)]
    if names.empty:
        lists = "; ".join(f"{s.name} has {s.n_genes} genes such as {', '.join(s.genes.index[:3])}" for s in sections)
        raise RunError(f"training sections must share genes, but no name is on all of them: {lists}. Use one naming.")
    total = sum(gene_totals(section, names) for section in sections)
    kept = names[(np.asarray(total) >= min_counts) & ~np.array([bool(exclude and pattern.match(n)) for n in names])]
    if kept.empty:
        raise RunError(
            f"no gene is left of {len(names)}: none reaches {min_counts} UMIs and escapes {exclude!r}; "
            "lower --min-counts or pass another --exclude-genes."
        )
    chosen: pd.DataFrame = sections[0].genes.loc[kept, ["gene_id"]].rename_axis("gene")
    return chosen


def gene_totals(section: Section, names: pd.Index) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """UMIs of each of the named genes on a section, `(G,)`."""
    column = section.genes.index.get_indexer(names)
    return np.asarray(section.counts[:, column].sum(axis=0), dtype=np.int64).ravel()
