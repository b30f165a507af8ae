"""Options that several commands share, and the reading of their values.

An option left out is not passed on: the default is that of the function called. What the help shows as default is
compared with that function by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from superst_monai.errors import RunError, StoreError

Mpp = Annotated[float | None, typer.Option(help="Working resolution, um per pixel.", show_default="4.0")]
SlideMpp = Annotated[
    float | None,
    typer.Option(help="Full resolution of the slide, um per pixel; overrules the file.", show_default="file"),
]
Image = Annotated[
    Path | None, typer.Option(help="H&E slide; left out: the image that comes with the counts.", show_default=False)
]
ImageScale = Annotated[
    float | None,
    typer.Option(
        help="Factor from the pixels of the coordinates to those of the image.", show_default="that of the image"
    ),
]
Section = Annotated[Path, typer.Option("--out", help="Section to write, a folder that ends in .zarr.")]
Name = Annotated[str | None, typer.Option(help="Name of the section.", show_default="stem of --out")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="COLUMN=VALUE", help="Column to add to the spots, such as patient=P1; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.", show_default="0")]
Folder = Annotated[Path, typer.Option("--out", help="Folder to write to.")]


def pairs(values: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read NAME=VALUE options.

    Args:
        values: as given.
        option: named in the error.

    Raises:
        RunError: a value has no "=", an empty side, or a name given twice; all faults.
    """
    found: dict[str, str] = {}
    faults = []
    for value in values or ():
        name, equals, level = (part.strip() for part in value.partition("="))
        if not (name and equals and level):
            faults.append(f"{value!r} is none")
        elif name in found:
            faults.append(f"{name} is given twice")
        found[name] = level
    if faults:
        raise RunError(f"{option} takes NAME=VALUE, each name once, but {'; '.join(faults)}; correct the option.")
    return found


def gene_list(text: str) -> list[str]:
    """Read the names of genes, separated by commas; repeated ones once.

    Raises:
        RunError: there is none.
    """
    genes = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not genes:
        raise RunError(f"--genes takes names separated by commas, got {text!r}; pass for example --genes ERBB2,CD3E.")
    return genes


def require_inputs(**paths: Path | Sequence[Path] | None) -> None:
    """Refuse inputs that do not exist, all of them at once.

    Args:
        paths: given paths by the name of their argument.

    Raises:
        StoreError: at least one is missing.
    """
    groups = {name: [given] if isinstance(given, Path) else list(given or ()) for name, given in paths.items()}
    missing = [f"{path} ({name})" for name, group in groups.items() for path in group if not path.exists()]
    if missing:
        raise StoreError(f"input must exist, but there is no {', no '.join(missing)}; check the path.")


def require_store_name(out: Path, *, overwrite: bool) -> None:
    """Refuse the name of a store before the work, not after it.

    Raises:
        StoreError: the name does not end in `.zarr`, or is taken.
    """
    if out.suffix != ".zarr":
        raise StoreError(f"--out must end in .zarr, got {out}; pass for example --out {out.stem or 'name'}.zarr.")
    if out.exists() and not overwrite:
        raise StoreError(f"--out {out} must not exist yet, but it does; choose another name or pass --overwrite.")
