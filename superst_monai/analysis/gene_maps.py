"""Pictures of genes from posterior maps: histology, expected UMIs per pixel and their standard deviation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from superst_monai.analysis.files import make_folder, write_whole
from superst_monai.analysis.overlay import save_figure
from superst_monai.analysis.panels import draw_numbers, draw_raster, reduce_image, reduce_map
from superst_monai.analysis.training_sections import read_run
from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import RunError, SuperstError
from superst_monai.inference.canvas import open_source
from superst_monai.inference.maps import Maps, open_maps

_TABLE = "GENES.csv"


def write_gene_maps(maps_path: Path | str, genes: Sequence[str], out_dir: Path | str) -> list[Path]:
    """Draw some genes of posterior maps, a PNG each, and write `GENES.csv` with their numbers.

    The table has a row for each gene: `mean` and `max` of the expected UMIs per tissue pixel, their `total` over the
    tissue [UMIs], the mean standard deviation `mean_sd`, the number of tissue pixels and the size of a pixel `mpp`.

    Args:
        maps_path: store of posterior maps.
        genes: names.
        out_dir: folder to write to, made if it is not there; files of these names are replaced.

    Returns:
        The files, those of the genes in their order, then the table.

    Raises:
        RunError: the maps have no such gene; all of them, with similar names.
        StoreError: the maps cannot be read or a file cannot be written.
    """
    maps = open_maps(maps_path)
    require_genes(genes, maps.genes)
    out = make_folder(out_dir)
    image = source_image(maps)
    paths, rows = [], []
    for (gene, mean, sd), file in zip(maps.each_gene(genes), file_names(genes), strict=True):
        save_figure(gene_figure(gene, mean, sd, maps.tissue, maps.mpp, image), out / file)
        paths.append(out / file)
        rows.append(gene_numbers(mean, sd, maps.tissue))
    table = pd.DataFrame(rows, index=pd.Index(list(genes), name="gene")).assign(mpp=maps.mpp)
    return [*paths, write_whole(out / _TABLE, table.to_csv)]


def gene_figure(
    gene: str,
    mean: NDArray[np.float32],
    sd: NDArray[np.float32],
    tissue: NDArray[np.bool_],
    mpp: float,
    image: NDArray[np.uint8] | None,
    *,
    longest_px: int = 1200,
) -> Figure:
    """Draw one gene: histology if there is an image, expected UMIs per pixel, and their standard deviation.

    Args:
        gene: its name.
        mean: expected UMIs per pixel `(H, W)`.
        sd: posterior standard deviation of that `(H, W)`.
        tissue: `(H, W)`; the rest stays white.
        mpp: um per pixel.
        image: H&E `(H, W, 3)` on the same grid, or None.
        longest_px: larger maps are averaged for display to so many pixels along the longer side; the unit stays.
    """
    factor = max(1.0, max(tissue.shape) / longest_px)
    height, width = tissue.shape
    n_panels = 2 if image is None else 3
    figure = Figure(figsize=(4.6 * n_panels, 0.7 + 4.0 * min(2.5, height / width)), dpi=150, layout="constrained")
    panels = list(figure.subplots(1, n_panels, squeeze=False)[0])
    if image is not None:
        draw_raster(panels.pop(0), reduce_image(image, factor), mpp * factor, "H&E")
    unit = f"UMIs per pixel ({mpp:.3g} x {mpp:.3g} um)"
    for axes, values, title in zip(panels, (mean, sd), ("expected expression", "standard deviation"), strict=True):
        shown, kept = reduce_map(values, tissue, factor)
        draw_numbers(figure, axes, shown, kept, mpp * factor, title, unit)
    drawn = f", averaged over {factor:.2g} x {factor:.2g} pixels for display" if factor > 1 else ""
    without = "" if image is not None else ", no histology (the image that was predicted on is not there)"
    figure.suptitle(f"{gene}{drawn}{without}", fontsize=10)
    return figure


def source_image(maps: Maps) -> NDArray[np.uint8] | None:
    """Read the H&E image `(H, W, 3)` that maps were predicted on, at their resolution.

    It is looked for where the record says, then among the training sections of the run by the hash of its slide.

    Returns:
        None when it is nowhere, damaged, or has another size now.
    """
    for path in _places(maps.record):
        try:
            image = _read_image(path, maps)
        except SuperstError:
            continue
        if image.shape[:2] == tuple(maps.shape):
            return image
    return None


def source_section(maps: Maps) -> Section | None:
    """Read the section with spots that maps were predicted on, looked for where `source_image` looks.

    Returns:
        None when it is nowhere, damaged, of another extent now, or was a slide alone.
    """
    for path in _places(maps.record):
        try:
            section = read_section(path)
        except SuperstError:
            continue
        sides_um = [
            (ours * section.mpp, theirs * maps.mpp)
            for ours, theirs in zip(section.tissue.shape, maps.shape, strict=True)
        ]
        if section.has_counts and all(abs(ours - theirs) <= section.mpp + maps.mpp for ours, theirs in sides_um):
            return section
    return None


def _places(record: Mapping[str, Any]) -> list[Path]:
    """Files that may hold the image, the best first; those that exist."""
    named = [record.get("source_path")]
    slide = (record.get("slide") or {}).get("sha256")
    try:
        sections = read_run(record.get("run"))["sections"]
    except RunError:
        sections = []
    named += [entry.get("path") for entry in sections if slide is not None and entry.get("slide") == slide]
    return [Path(path) for path in named if path is not None and Path(path).exists()]


def _read_image(path: Path, maps: Maps) -> NDArray[np.uint8]:
    """Read a section's image or a slide at the resolution of the maps."""
    slide = maps.record.get("slide") or {}
    known = None if slide.get("mpp_source") == "file" else slide.get("mpp_x")
    with open_source(path, slide_mpp=known) as source:
        return source.at(maps.mpp).image if isinstance(source, Section) else source.read(source.whole(), maps.mpp)


def file_names(genes: Sequence[str]) -> list[str]:
    """PNG names for genes, unique on any file system: odd characters become `_`, repeats get a number."""
    names: list[str] = []
    taken = {_TABLE.lower()}
    for gene in genes:
        stem = name = re.sub(r"[^\w.+-]", "_", gene).lstrip(".") or "_"
        number = 1
        while f"{name}.png".lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(f"{name}.png".lower())
        names.append(f"{name}.png")
    return names


def gene_numbers(mean: NDArray[np.float32], sd: NDArray[np.float32], tissue: NDArray[np.bool_]) -> dict[str, float]:
    """Summary of a gene over the tissue, in double precision."""
    inside = mean[tissue].astype(np.float64)
    return {
        "mean": float(inside.mean()) if inside.size else 0.0,
        "max": float(inside.max(initial=0.0)),
        "total": float(inside.sum()),
        "mean_sd": float(sd[tissue].astype(np.float64).mean()) if inside.size else 0.0,
        "tissue_px": int(inside.size),
    }


def require_genes(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse unknown genes, naming similar ones."""
    have = set(known)
    unknown = [gene for gene in wanted if gene not in have]
    if not unknown:
        return
    by_folded = {name.casefold(): name for name in known}
    hints = []
    for gene in unknown[:10]:
        near = difflib.get_close_matches(gene.casefold(), by_folded, n=3)
        hints.append(f"{gene} (similar: {', '.join(by_folded[name] for name in near)})" if near else gene)
    raise RunError(
        f"the maps hold {len(have)} genes, but not {', '.join(hints)}"
        f"{' ...' if len(unknown) > 10 else ''}; pass names as they were in training (genes.csv of the run)."
    )
