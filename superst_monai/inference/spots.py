"""Predicted counts of the spots of a section, beside what was observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from superst_monai.data.section import Section
from superst_monai.errors import RunError

if TYPE_CHECKING:
    from superst_monai.inference.maps import Maps


def spots_of(maps: Maps, section: Section, genes: Sequence[str] | None) -> AnnData:
    """See `Maps.spots`."""
    label = maps.spot_label(section)
    names = [g for g in maps.genes if g in section.genes.index] if genes is None else list(genes)
    if not names:
        raise RunError(
            f"the run and section {section.name} must share genes, but no name is in both: the run has "
            f"{', '.join(maps.genes[:3])} ..., the section {', '.join(section.genes.index[:3])} ...; "
            "use one naming (symbols or Ensembl ids)."
        )
    chunks = [(s.mean, s.sd) for s in maps.chunks(label, genes=names, n_supports=section.n_spots)]
    found = section.genes.index.get_indexer(pd.Index(names))
    observed = np.full((section.n_spots, len(names)), np.nan, np.float32)
    observed[:, found >= 0] = section.counts[:, found[found >= 0]].toarray()
    adata = AnnData(
        np.concatenate([mean for mean, _ in chunks], axis=1),
        obs=section.spots.copy(),
        layers={"sd": np.concatenate([sd for _, sd in chunks], axis=1), "observed": observed},
        obsm={"spatial": section.spots[["x_um", "y_um"]].to_numpy(np.float64)},
    )
    adata.var_names = names
    ids = dict(zip(maps.genes, maps.gene_ids, strict=True))
    adata.var["gene_id"] = [ids[g] for g in names]
    return adata
