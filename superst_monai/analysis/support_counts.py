"""Predicted counts of supports as an AnnData: expectation, its uncertainty, and the interval of the count itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from superst_monai.analysis.supports import Supports
from superst_monai.data.pixels import machine_memory
from superst_monai.errors import AlignmentError, RunError
from superst_monai.inference.maps import Floats, Maps
from superst_monai.inference.sums import Sums

if TYPE_CHECKING:
    from anndata import AnnData

LAYERS: Mapping[str, str] = MappingProxyType(
    {
        "mean": "expected UMIs per support",
        "sd": "posterior standard deviation of the expected UMIs",
        "q05": "5 % quantile of the predicted count (posterior and negative binomial) [UMI]",
        "q95": "95 % quantile of the predicted count (posterior and negative binomial) [UMI]",
        "mean_q05": "5 % quantile of the expected UMIs over the posterior",
        "mean_q95": "95 % quantile of the expected UMIs over the posterior",
    }
)
Show = Callable[[float, float], None]
_LEVEL = 0.9  # between q05 and q95
_NUMBERS = 2**22  # samples x supports x genes at once
_ROW_BYTES = 250  # of names and other columns


def count_layers(sums: Sums, layers: Sequence[str]) -> dict[str, Floats]:
    """Layers of some supports and genes, each `(S, G)` float32 [UMI]; see `LAYERS`."""
    found: dict[str, Floats] = {}
    if "mean" in layers:
        found["mean"] = sums.mean
    if "sd" in layers:
        found["sd"] = sums.sd_of_mean
    if {"q05", "q95"} & set(layers):
        found["q05"], found["q95"] = (end.astype(np.float32) for end in sums.interval(_LEVEL))
    if {"mean_q05", "mean_q95"} & set(layers):
        found["mean_q05"], found["mean_q95"] = sums.mean_interval(_LEVEL)
    return {layer: found[layer] for layer in layers}


def law_in_parts(maps: Maps, sizes: Floats, genes: Sequence[str]) -> Iterator[tuple[slice, slice, Sums]]:
    """Yield the count laws of supports of known sizes `(N, S, K)`, so many supports and genes at once as fit in memory.

    Yields:
        Which of the supports, which of the genes, and their laws.
    """
    n_samples, n_supports, _ = sizes.shape
    rows = max(1, min(n_supports, _NUMBERS // n_samples))
    cols = max(1, _NUMBERS // (n_samples * rows))
    for top in range(0, n_supports, rows):
        for left in range(0, len(genes), cols):
            some = slice(top, min(top + rows, n_supports)), slice(left, min(left + cols, len(genes)))
            yield *some, maps.law(sizes[:, some[0]], genes[some[1]])


def predict_counts(
    maps: Maps,
    supports: Supports,
    genes: Sequence[str] | None = None,
    *,
    layers: Sequence[str] = tuple(LAYERS),
    command: str = "",
    show: Show | None = None,
) -> AnnData:
    """Predict the counts of supports.

    Memory is that of the result and of one tile; it does not grow with the slide.

    Args:
        maps: posterior maps.
        supports: what to sum over, of the same slide.
        genes: their names; all if not given.
        layers: names of `LAYERS`.
        command: how the table came about, for the record.
        show: called with the share done and the seconds spent.

    Returns:
        S x G: X the expected counts, `layers`; obs as `supports.table()` and covered_um2, the part of the area that was
        predicted (tissue); var gene_id; obsm spatial [um]; uns superst_monai with source, mpp, kind, size_um, units of
        each layer, notes and command.

    Raises:
        RunError: a gene or layer that there is not, or a table that does not fit in memory, with its size.
        AlignmentError: no support holds a predicted pixel.
    """
    names = maps.genes if genes is None else list(genes)
    check_layers(layers)
    maps.law(np.zeros((maps.n_samples, 0, maps.n_metagenes), np.float32), names)  # knows the genes
    wanted = dict.fromkeys(["mean", *layers])
    require_room(supports, len(names), len(layers) + 1)
    values = {layer: np.zeros((len(supports), len(names)), np.float32) for layer in wanted}
    covered_px = np.zeros(len(supports), np.float32)
    started = time.monotonic()
    for piece in supports.pieces(maps):
        covered_px[piece.rows] = piece.covered_px
        for rows, cols, sums in law_in_parts(maps, piece.sizes, names):
            for layer, found in count_layers(sums, list(wanted)).items():
                values[layer][piece.rows[rows], cols] = found
        if show is not None:
            show(piece.done, time.monotonic() - started)
    return _table(maps, supports, names, values, covered_px, layers, command)


def check_layers(layers: Sequence[str]) -> None:
    """Refuse names of layers that there are not.

    Raises:
        RunError: all of them, or none is given.
    """
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or not layers:
        raise RunError(f"layers are {', '.join(LAYERS)}, got {', '.join(unknown) or 'none'}; pass for example mean,sd.")


def require_room(supports: Supports, n_genes: int, n_layers: int) -> None:
    """Refuse a table that does not fit in a quarter of the machine's memory, before the work.

    Raises:
        RunError: with its size and what makes it smaller.
    """
    n_bytes, room = len(supports) * (n_genes * n_layers * 4 + _ROW_BYTES), machine_memory() // 4
    if n_bytes > room:
        raise RunError(
            f"a table of {len(supports):,} {supports.kind} x {n_genes:,} genes x {n_layers} layers takes "
            f"{n_bytes / 2**30:,.1f} GiB, which must fit in a quarter of this machine's memory, "
            f"{room / 2**30:.1f} GiB; choose genes (--genes A,B), fewer layers or larger bins, or write pixels and "
            "bins as an image (.ome.tif, .ome.zarr)."
        )


def _table(
    maps: Maps,
    supports: Supports,
    genes: Sequence[str],
    values: Mapping[str, Floats],
    covered_px: Floats,
    layers: Sequence[str],
    command: str,
) -> AnnData:
    """Put the numbers of all supports together."""
    from anndata import AnnData

    n_empty = int((covered_px <= 0).sum())
    if n_empty == len(supports):
        raise AlignmentError(
            f"at least one of the {n_empty} {supports.kind} must lie on tissue of {maps.record['source']}, but none "
            "does; check that they are of this slide and in its frame (micrometres or full-resolution pixels)."
        )
    notes = list(supports.notes)
    if n_empty:
        notes.append(f"{n_empty} of {len(supports)} {supports.kind} hold no predicted pixel; their counts are 0.")
    obs = supports.table().assign(covered_um2=covered_px.astype(np.float64) * maps.mpp**2)
    facts: dict[str, Any] = {
        "kind": supports.kind,
        "size_um": supports.size_um,
        "source": maps.record["source"],
        "mpp": maps.mpp,
        "samples": maps.n_samples,
        "dispersion": maps.dispersion,
        "units": {layer: LAYERS[layer] for layer in layers},
        "notes": np.array(notes, dtype=str),
        "command": command,
    }
    adata = AnnData(
        values["mean"],
        obs=obs,
        layers={layer: values[layer].copy() if layer == "mean" else values[layer] for layer in layers},
        obsm={"spatial": obs[["x_um", "y_um"]].to_numpy(np.float64)},
        uns={"superst_monai": {key: value for key, value in facts.items() if value is not None}},
    )
    adata.var_names = list(genes)
    gene_ids = dict(zip(maps.genes, maps.gene_ids, strict=True))
    adata.var["gene_id"] = [gene_ids[gene] for gene in genes]
    return adata
