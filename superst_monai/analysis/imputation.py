"""Expected counts of all genes over any support, normalised by area or scale, under any condition of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from superst_monai.analysis.differential import AREA_UM2
from superst_monai.analysis.differential import UNITS as PER_UNITS
from superst_monai.analysis.files import make_folder, write_whole
from superst_monai.analysis.several_maps import open_several
from superst_monai.analysis.support_counts import law_in_parts, require_room
from superst_monai.analysis.support_files import check_supports, open_supports
from superst_monai.analysis.supports import Piece, Supports
from superst_monai.errors import AlignmentError, RunError
from superst_monai.inference.maps import Maps

if TYPE_CHECKING:
    from anndata import AnnData

Per: TypeAlias = Literal["support", "area", "scale"]
UNITS = {"support": "UMIs", **PER_UNITS}


def impute(maps: Maps, supports: Supports, genes: Sequence[str] | None = None, *, per: Per = "support") -> AnnData:
    """Compute the expected counts of supports, normalised, and what the model does not know of them.

    In sample n support l has E_nlg = sum_k m_nlk exp(log_rate_nkg + logit_ng) / D_nl with m its metagene sizes, and D 1
    for "support", its predicted area for "area", or its scale sum_k m_nlk for "scale". To compute them under another
    condition, pass maps of `inference.conditions.under`.

    Args:
        maps: of the slide.
        supports: what to sum over.
        genes: their names; all if not given.
        per: what the counts are divided by, see `UNITS`.

    Returns:
        S x G: X mean over the samples, layer `sd` their standard deviation (divided by N); obs as `supports.table()`
        and covered_um2, the part of the area that was predicted, and `scale`, the mean sum of metagene sizes; var
        gene_id; obsm spatial [um]; uns superst_monai with unit, conditions and removed covariates. A support that
        holds no predicted pixel has 0 UMIs, and NaN where these are divided.

    Raises:
        RunError: a gene that the run does not have, or a table that does not fit in memory, with its size.
        AlignmentError: no support holds a predicted pixel.
    """
    names = maps.genes if genes is None else list(genes)
    rates = maps.law(np.zeros((maps.n_samples, 0, maps.n_metagenes), np.float32), names)  # knows the genes
    require_room(supports, len(rates.genes), 2)
    empty = 0.0 if per == "support" else np.nan
    mean, sd = (np.full((len(supports), len(names)), empty, np.float32) for _ in range(2))
    covered_um2, scale = np.zeros(len(supports)), np.zeros(len(supports))
    for piece in supports.pieces(maps):
        some = piece.sizes.sum(axis=(0, 2)) > 0
        rows, sizes = piece.rows[some], piece.sizes[:, some]
        covered_um2[piece.rows] = piece.covered_px * maps.mpp**2
        scale[rows] = sizes.sum(axis=2).mean(axis=0)
        normalised = sizes / _divisor(piece._replace(rows=rows, sizes=sizes), covered_um2[rows], per)[..., None]
        for part, columns, sums in law_in_parts(maps, normalised, names):
            mean[rows[part], columns], sd[rows[part], columns] = sums.mean, sums.sd_of_mean
    if not scale.any():
        raise AlignmentError(
            f"at least one of the {len(supports)} {supports.kind} must lie on tissue of {maps.record['source']}, but "
            "none does; check that they are of this slide and in its frame."
        )
    return _table(maps, supports, names, (mean, sd), (covered_um2, scale), per)


def write_imputation(
    paths: Sequence[Path | str],
    out_dir: Path | str,
    *,
    to: str,
    objects: Sequence[Path | str] = (),
    bin_um: float | None = None,
    genes: Sequence[str] | None = None,
    per: Per = "support",
    conditions: Mapping[str, str | None] | None = None,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Write `SECTION.h5ad` of `impute`, and `SECTION.csv` with the table of its supports, for each section.

    Args:
        paths: posterior maps.
        out_dir: folder to write to, made if it is not there; files of these names are replaced.
        to: what to sum over; see `support_files.open_supports`.
        objects: file of the supports of each section, in their order; none for bins.
        bin_um: side of a bin [um].
        genes: their names; all if not given.
        per: what the counts are divided by.
        conditions: level that a covariate is set to, or None to take its effect out.
        say: called with what was left out or changed, one sentence each.

    Returns:
        The files.

    Raises:
        RunError: options that do not go together, a gene or condition that is not of the run, or too large a table.
        StoreError: maps cannot be read or a file cannot be written.
        SuperstError: the objects do not fit their slide.
    """
    if objects and len(objects) != len(paths):
        raise RunError(
            f"there must be one file of {to} for each section, in their order, got {len(objects)} for {len(paths)}."
        )
    files: list[Path | None] = [Path(file) for file in objects] or [None] * len(paths)
    for file in files:
        check_supports(to, file, bin_um)
    several, written = open_several(paths, conditions=conditions), []
    for one, file in zip(several, files, strict=True):
        with open_supports(one.maps, to, file, bin_um=bin_um) as supports:
            table = impute(one.maps, supports, genes, per=per)
            if say is not None:
                for note in supports.notes:
                    say(f"{one.name}: {note}")
        out = make_folder(out_dir)
        written.append(write_whole(out / f"{one.name}.h5ad", table.write_h5ad))
        written.append(write_whole(out / f"{one.name}.csv", table.obs.to_csv))
    return written


def _divisor(piece: Piece, covered_um2: NDArray[np.float64], per: Per) -> NDArray[np.float32]:
    """What the counts of supports are divided by, by sample `(N, s)`."""
    if per == "scale":
        return np.asarray(piece.sizes.sum(axis=2), np.float32)
    by = np.ones(len(piece.rows)) if per == "support" else covered_um2 / AREA_UM2
    return np.broadcast_to(by.astype(np.float32), piece.sizes.shape[:2])


def _table(
    maps: Maps,
    supports: Supports,
    genes: Sequence[str],
    values: tuple[NDArray[np.float32], NDArray[np.float32]],
    sizes: tuple[NDArray[np.float64], NDArray[np.float64]],
    per: Per,
) -> AnnData:
    """Put the numbers of all supports together."""
    from anndata import AnnData

    obs = supports.table().assign(covered_um2=sizes[0], scale=sizes[1])
    said = {c: level for c, level in maps.record.get("conditions", {}).items() if level is not None}
    facts = {
        "unit": UNITS[per],
        "kind": supports.kind,
        "source": maps.record["source"],
        "conditions": said,
        "removed": np.array(maps.record.get("removed", []), dtype=str),
        "notes": np.array(supports.notes, dtype=str),
    }
    table = AnnData(
        values[0],
        obs=obs,
        layers={"sd": values[1]},
        obsm={"spatial": obs[["x_um", "y_um"]].to_numpy(np.float64)},
        uns={"superst_monai": facts},
    )
    table.var_names = list(genes)
    gene_ids = dict(zip(maps.genes, maps.gene_ids, strict=True))
    table.var["gene_id"] = [gene_ids[gene] for gene in genes]
    return table
