"""One door to all exports: what to sum over, and a file whose suffix says the format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from superst_monai.analysis.exports.ome_tiff import write_ome_tiff
from superst_monai.analysis.exports.pyramid import Picture, check_picture, write_pyramid
from superst_monai.analysis.exports.tables import wide_table, write_geojson
from superst_monai.analysis.files import make_folder, write_whole
from superst_monai.analysis.label_files import LABEL_SUFFIXES
from superst_monai.analysis.support_counts import LAYERS, Show, predict_counts
from superst_monai.analysis.support_files import open_supports, support_faults
from superst_monai.analysis.support_grid import Grid
from superst_monai.analysis.supports import Supports
from superst_monai.data.atomic import new_store, scratch_folder
from superst_monai.errors import RunError, StoreError
from superst_monai.inference.maps import Maps, open_maps

if TYPE_CHECKING:
    from anndata import AnnData

IMAGES = (".ome.tif", ".ome.tiff", ".ome.zarr")
TABLES = (".h5ad", ".csv", ".parquet", ".geojson")
_GRIDS = ("pixels", "bins")
_IMAGE_LAYERS = ("mean", "sd")


def export(
    maps_path: Path | str,
    out: Path | str,
    *,
    to: str,
    objects: Path | str | None = None,
    bin_um: float | None = None,
    genes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    overwrite: bool = False,
    command: str = "",
    show: Show | None = None,
) -> list[str]:
    """Write the predicted counts of pixels, bins, spots, cells or regions to a file.

    Args:
        maps_path: store of posterior maps.
        out: file to write; its suffix, one of `IMAGES` (pixels and bins) or `TABLES`, is the format.
        to: what to sum over, and
        objects: the file that says where these are, see `support_files.open_supports`.
        bin_um: side of a bin [um].
        genes: names; all if not given, which an image does not hold.
        layers: names of `support_counts.LAYERS`; all if not given, in an image mean and sd.
        overwrite: replace a file of that name.
        command: for the record.
        show: called with the share done and the seconds spent.

    Returns:
        What must be said about the result, one sentence each.

    Raises:
        RunError: options that do not go together, all of them; a gene or layer that there is not; too large a table.
        StoreError: the name is taken, or something cannot be read or written.
        SuperstError: the objects do not fit the slide.
    """
    out, objects = Path(out), None if objects is None else Path(objects)
    suffix = _checked(to, out, objects, bin_um, genes)
    if (out.exists() or out.is_symlink()) and not overwrite:
        raise StoreError(f"{out} must not exist yet, but it does; choose another name or pass --overwrite.")
    maps = open_maps(maps_path)
    if suffix in IMAGES:
        picture = Picture(maps, Grid(maps, bin_um), list(genes or ()), list(layers or _IMAGE_LAYERS))
        _write_image(out, suffix, picture, overwrite=overwrite, show=show)
        return list(picture.grid.notes)
    with open_supports(maps, to, objects, bin_um=bin_um) as supports:
        adata = predict_counts(maps, supports, genes, layers=tuple(layers or LAYERS), command=command, show=show)
    _write_table(out, suffix, adata, supports, maps)
    return [str(note) for note in adata.uns["superst_monai"]["notes"]]


def _checked(to: str, out: Path, objects: Path | None, bin_um: float | None, genes: Sequence[str] | None) -> str:
    """Suffix of a file that can be written with these options.

    Raises:
        RunError: all that is wrong with them.
    """
    suffix = next((known for known in (*IMAGES, *TABLES) if out.name.lower().endswith(known)), "")
    is_label = objects is not None and objects.suffix.lower() in LABEL_SUFFIXES
    rules = {
        f"--out must end in {', '.join((*IMAGES, *TABLES))}, got {out.name}": suffix != "",
        f"{suffix} holds pixels or bins, not {to}; write {', '.join(TABLES)}": suffix not in IMAGES or to in _GRIDS,
        f"{suffix} needs --genes": suffix not in IMAGES or genes is not None,
        "a label image has no outlines for .geojson; write .h5ad, .csv or .parquet": suffix != ".geojson"
        or not is_label,
    }
    faults = [*support_faults(to, objects, bin_um), *(rule for rule, holds in rules.items() if not holds)]
    if faults:
        raise RunError(f"these options do not go together: {'; '.join(faults)}.")
    return suffix


def _write_image(out: Path, suffix: str, picture: Picture, *, overwrite: bool, show: Show | None) -> None:
    """Write an image with its pyramid, whole or not at all."""
    check_picture(picture)
    if suffix == ".ome.zarr":
        with new_store(out, overwrite=overwrite) as partial:
            write_pyramid(partial, picture, show=show)
        return
    with scratch_folder(out) as folder:
        write_pyramid(folder / "pyramid", picture, show=show)
        write_ome_tiff(folder / "image", picture, folder / "pyramid")
        (folder / "image").replace(out)


def _write_table(out: Path, suffix: str, adata: AnnData, supports: Supports, maps: Maps) -> None:
    """Write a table, whole or not at all."""
    writers: dict[str, Callable[[Path], object]] = {
        ".h5ad": lambda path: adata.write_h5ad(path, compression="gzip"),
        ".csv": lambda path: wide_table(adata).to_csv(path),
        ".parquet": lambda path: wide_table(adata).to_parquet(path),
        ".geojson": lambda path: write_geojson(path, adata, supports, maps),
    }
    make_folder(out.parent)
    write_whole(out, writers[suffix])
