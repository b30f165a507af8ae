"""`superst inspect`: what a store holds, and whether spots and slide fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from superst_monai.cli.kernel import given
from superst_monai.cli.options import require_inputs
from superst_monai.errors import StoreError


def inspect_store(
    store: Annotated[Path, typer.Argument(metavar="SECTION_OR_MAPS", help="Store of superst prepare or predict.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Overlay of a section to write.", show_default="SECTION.png")
    ] = None,
) -> None:
    """Show a stored section (preflight table and overlay) or posterior maps (summary)."""
    require_inputs(SECTION_OR_MAPS=store)
    meta = store_meta(store)
    if meta.get("kind") == "maps":
        show_maps(store, out)
    else:
        show_section(store, meta, out)


def show_section(store: Path, meta: dict[str, Any], out: Path | None) -> None:
    """Print the preflight table that was stored and draw the overlay.

    Raises:
        StoreError: the store is damaged, or the overlay cannot be written.
    """
    picture = out or store.with_suffix(".png")
    if not os.access(picture.parent, os.W_OK):
        raise StoreError(f"the overlay {picture} cannot be written, its folder is read-only or missing; pass --out.")
    from superst_monai.analysis.overlay import overlay_figure, save_figure
    from superst_monai.cli.tables import show_checks, show_values
    from superst_monai.data.store import read_section

    section = read_section(store)
    height, width = section.tissue.shape
    size_mm = f"{width * section.mpp / 1000:.3g} x {height * section.mpp / 1000:.3g} mm"
    columns = ", ".join(map(str, section.spots.columns))
    facts = {
        "platform": section.platform,
        "size": f"{width} x {height} px of {section.mpp:g} um ({size_mm})",
        "tissue": f"{section.tissue.mean():.1%}",
        "spots x genes": f"{section.n_spots} x {section.n_genes}",
        "columns of the spots": columns,
        "slide": section.slide.get("file") or "an image in memory",
    }
    show_values(f"Section {section.name}", facts)
    show_checks(section.name, meta.get("preflight", []))
    save_figure(overlay_figure(section), picture)
    typer.echo(f"wrote {picture}")


def show_maps(store: Path, out: Path | None) -> None:
    """Print what posterior maps hold and where they come from.

    Raises:
        StoreError: an overlay is wanted, or the store is damaged.
    """
    if out is not None:
        raise StoreError(f"{store} holds maps, --out is for sections; draw genes with `superst maps {store}`.")
    from superst_monai.cli.tables import show_values
    from superst_monai.inference.maps import open_maps

    maps = open_maps(store)
    height, width = maps.shape
    facts = {
        "genes": len(maps.genes),
        "posterior samples": maps.n_samples,
        "size": f"{width} x {height} px of {maps.mpp:g} um",
        "extent": f"{width * maps.mpp / 1000:.3g} x {height * maps.mpp / 1000:.3g} mm",
    }
    record = {str(name): _said(value) for name, value in maps.record.items()}
    show_values(f"Posterior maps {store.name}", given(**facts, **record))


def _said(value: Any) -> Any:
    """A value to print; of a mapping what it knows, nothing of an empty one."""
    if not isinstance(value, Mapping):
        return value
    return ", ".join(f"{name} {found}" for name, found in value.items() if found is not None) or None


def is_store(path: Path) -> bool:
    """Whether a path is a zarr store, and not a slide (a DICOM slide may be a folder)."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def store_meta(path: Path) -> dict[str, Any]:
    """What this package wrote about a store.

    Raises:
        StoreError: it is none of ours.
    """
    meta: Any = None
    if is_store(path):
        import zarr

        from superst_monai.data.store import ATTRS

        try:
            meta = zarr.open_group(path, mode="r").attrs.get(ATTRS)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise StoreError(f"{path} is damaged ({exc}); write it again.") from exc
    if not isinstance(meta, dict):
        raise StoreError(f"{path} must be a store of `superst prepare` or `superst predict`, but it is none.")
    return meta
