"""`superst export`: predicted counts of pixels, bins, spots, cells or regions, in the formats of other programs."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from superst_monai.cli.kernel import given, if_interrupted
from superst_monai.cli.options import Overwrite, gene_list, require_inputs
from superst_monai.cli.results import MapsPath


class Kind(StrEnum):
    """What counts are summed over."""

    PIXELS = "pixels"
    BINS = "bins"
    SPOTS = "spots"
    CELLS = "cells"
    REGIONS = "regions"


def export(
    maps: MapsPath,
    to: Annotated[Kind, typer.Option(help="What to sum the expression over.", show_choices=True)],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="File to write: .h5ad, .csv, .parquet or .geojson; pixels and bins also .ome.tif or .ome.zarr.",
        ),
    ],
    objects: Annotated[
        Path | None,
        typer.Option(help="Section of the spots; GeoJSON or label image of cells or regions.", show_default=False),
    ] = None,
    bin_um: Annotated[float | None, typer.Option(help="Side of a bin, um.", show_default=False)] = None,
    genes: Annotated[
        str | None, typer.Option(metavar="A,B", help="Genes, separated by commas.", show_default="all")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="mean,sd",
            help="Of mean, sd, q05, q95 (of the count), mean_q05, mean_q95.",
            show_default="all; mean,sd in an image",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the predicted counts of pixels, bins, spots, cells or regions for other programs."""
    require_inputs(MAPS=maps, objects=objects)
    options = given(
        objects=objects,
        bin_um=bin_um,
        genes=None if genes is None else gene_list(genes),
        layers=None if layers is None else [layer.strip() for layer in layers.split(",")],
    )
    from superst_monai.analysis.exports.export import export as write
    from superst_monai.cli.progress import Progress

    command = shlex.join(["superst", *sys.argv[1:]])
    with if_interrupted(lambda: "Nothing was written."), Progress("exporting") as show:
        notes = write(maps, out, to=to.value, overwrite=overwrite, command=command, show=show, **options)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"wrote {out}")
