"""`superst analyze genes`: log fold change of genes against the mean of their section, with uncertainty, as maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from superst_monai.analysis.files import make_folder, write_whole
from superst_monai.analysis.gene_maps import file_names, gene_numbers, require_genes, source_image
from superst_monai.analysis.overlay import save_figure
from superst_monai.analysis.panels import colour_end, draw_numbers, draw_raster, reduce_image, reduce_map
from superst_monai.analysis.several_maps import Named, open_several, tissue_sizes
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps

Floats = NDArray[np.float32]
LOWEST = -10.0
"""Log2 fold changes end here: a pixel that expects a thousandth of the mean, or nothing, expects none."""
_LONGEST_PX = 1000


class GeneMap(NamedTuple):
    """Maps of one gene on one section, all `(H, W)`; zero where nothing is predicted."""

    mean: Floats  # expected UMIs of a pixel
    sd: Floats  # posterior standard deviation of that
    fold: Floats  # mean log2 fold change against the mean of the tissue
    fold_sd: Floats  # its posterior standard deviation

    @property
    def inverse_cv(self) -> Floats:
        """Positive part of the fold change over its sd: where the gene is surely above the mean of its section."""
        above = np.maximum(self.fold, 0)
        return np.divide(above, self.fold_sd, out=np.zeros_like(above), where=self.fold_sd > 0)


def gene_map(maps: Maps, gene: str) -> GeneMap:
    """Compute the maps of a gene, tile by tile.

    In sample n pixel p expects E_np = sum_k activity_nkp exp(log_rate_nkg + logit_ng) UMIs; its log2 fold change is
    log2 E_np - log2 of the mean of E_n over the tissue, at least `LOWEST`.

    Args:
        maps: of the section.
        gene: its name.

    Raises:
        RunError: the run does not have the gene, nothing is predicted on the tissue, or there are no two samples.

    Source: Bergenstråhle et al. 2022, doi:10.1038/s41587-021-01075-3, gene maps.
    """
    if maps.n_samples < 2:
        raise RunError("uncertainty needs at least 2 posterior samples, got 1; predict with --samples 10.")
    mean, sd = maps.gene(gene)
    law = maps.law(np.eye(maps.n_metagenes, dtype=np.float32)[None], [gene])  # of a unit of each metagene
    rate = law.total_count[:, :, 0]  # (N, K); the logit is that of the whole section and cancels
    middle = (tissue_sizes(maps) * rate).sum(axis=1) / maps.tissue.sum()  # (N,)
    weight = (rate / middle[:, None]).astype(np.float32)
    fold, fold_sd = np.zeros_like(mean), np.zeros_like(mean)
    for place, tile in maps.tiles():
        ratio = np.einsum("nk,nkhw->nhw", weight, tile)
        values = np.log2(np.maximum(ratio, 2.0**LOWEST))
        inside = maps.covered[place]
        fold[place] = values.mean(axis=0) * inside
        fold_sd[place] = values.std(axis=0, ddof=1) * inside
    return GeneMap(mean, sd, fold, fold_sd)


def write_gene_folds(
    paths: Sequence[Path | str], genes: Sequence[str], out_dir: Path | str, *, common_range: bool = False
) -> list[Path]:
    """Draw genes of some sections: expected UMIs, log2 fold change against the section's mean, their sd, and the ratio.

    Writes a PNG for each gene and section, in a folder for each section if there are several, and `GENES.csv`, a row
    for each of them: mean, max, total, mean_sd, tissue_px as `superst maps` writes; `fold_q05`, `fold_q95` (quantiles
    over the tissue of the mean log2 fold change), `share_above` (share of the tissue where the fold change is above 0
    by more than two standard deviations), and where the colours end.

    Args:
        paths: posterior maps.
        genes: names.
        out_dir: folder to write to, made if it is not there; files of these names are replaced.
        common_range: the colours of a gene end at the same numbers on all sections.

    Returns:
        The files, the table last.

    Raises:
        RunError: a section has no such gene, or fewer than two samples.
        StoreError: maps cannot be read or a file cannot be written.
    """
    several = open_several(paths)
    for one in several:
        require_genes(genes, one.maps.genes)
    out = make_folder(out_dir)
    folders = [make_folder(out / one.name) if len(several) > 1 else out for one in several]
    images = [source_image(one.maps) for one in several]
    written, rows = [], []
    for gene, file in zip(genes, file_names(genes), strict=True):
        ends = [colour_ends(one.maps, gene) for one in several] if common_range else []
        for one, folder, image in zip(several, folders, images, strict=True):
            found = gene_map(one.maps, gene)
            end = _Ends(*map(max, zip(*ends, strict=True))) if common_range else _ends(found, one.maps.tissue)
            save_figure(fold_figure(f"{gene}, {one.name}", found, one, image, end), folder / file)
            written.append(folder / file)
            rows.append({"gene": gene, "section": one.name, **_fold_numbers(found, one.maps), **end._asdict()})
    return [*written, write_whole(out / "GENES.csv", lambda path: pd.DataFrame(rows).to_csv(path, index=False))]


class _Ends(NamedTuple):
    """Where the colours of the panels end."""

    end_mean: float
    end_sd: float
    end_fold: float
    end_fold_sd: float
    end_inverse_cv: float


def colour_ends(maps: Maps, gene: str) -> _Ends:
    """Where the colours of a gene on a section would end by themselves."""
    return _ends(gene_map(maps, gene), maps.tissue)


def _ends(found: GeneMap, tissue: NDArray[np.bool_]) -> _Ends:
    return _Ends(*(colour_end(values[tissue]) for values in (*found, found.inverse_cv)))


def fold_figure(title: str, found: GeneMap, one: Named, image: NDArray[np.uint8] | None, ends: _Ends) -> Figure:
    """Draw H&E, expected UMIs and their sd above; log2 fold change, its sd and the ratio of the two below.

    Args:
        title: of the figure.
        found: of `gene_map`.
        one: the section.
        image: H&E `(H, W, 3)` on the same grid, or None.
        ends: where the colours end.
    """
    maps = one.maps
    height, width = maps.shape
    factor = max(1.0, max(height, width) / _LONGEST_PX)
    figure = Figure(figsize=(13.2, 0.7 + 7.6 * min(2.0, height / width)), dpi=130, layout="constrained")
    panels = list(figure.subplots(2, 3).ravel())
    if image is None:
        panels[0].set_axis_off()
        panels[0].text(
            0.5, 0.5, "no histology:\nthe image that was\npredicted on is not there", ha="center", va="center"
        )
    else:
        draw_raster(panels[0], reduce_image(image, factor), maps.mpp * factor, "H&E")
    pixel = f"UMIs per pixel ({maps.mpp:.3g} x {maps.mpp:.3g} um)"
    drawn = (
        (found.mean, "expected expression", pixel),
        (found.sd, "standard deviation", pixel),
        (found.fold, "fold change against the section's mean", "log2 fold change"),
        (found.fold_sd, "standard deviation of the fold change", "log2 fold change"),
        (found.inverse_cv, "surely above the mean", "positive fold change / standard deviation"),
    )
    for axes, (values, name, unit), end in zip(panels[1:], drawn, ends, strict=True):
        signed = values is found.fold
        (up, kept), (down, _) = (reduce_map(np.maximum(sign * values, 0), maps.tissue, factor) for sign in (1, -1))
        draw_numbers(figure, axes, up - down, kept, maps.mpp * factor, name, unit, top=end, signed=signed)
    figure.suptitle(title, fontsize=11)
    return figure


def _fold_numbers(found: GeneMap, maps: Maps) -> dict[str, float]:
    """Summary of a gene over the tissue of a section."""
    inside = found.fold[maps.tissue]
    low, high = np.quantile(inside, [0.05, 0.95])
    return {
        **gene_numbers(found.mean, found.sd, maps.tissue),
        "mpp": maps.mpp,
        "fold_q05": float(low),
        "fold_q95": float(high),
        "share_above": float((found.inverse_cv[maps.tissue] > 2).mean()),
    }
