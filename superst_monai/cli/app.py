"""The commands of `superst`, gathered in one application."""

from __future__ import annotations

import typer

from superst_monai.cli.analyze import app as analyze
from superst_monai.cli.bundle import app as bundle
from superst_monai.cli.experiment import app as experiment
from superst_monai.cli.export import export
from superst_monai.cli.fields import fit_section
from superst_monai.cli.inspection import inspect_store
from superst_monai.cli.kernel import add_command
from superst_monai.cli.prepare import prepare_h5ad, prepare_slide, prepare_st, prepare_visium
from superst_monai.cli.results import evaluate, gene_maps, predict
from superst_monai.cli.training import demo, train

app = typer.Typer(
    name="superst",
    help="Super-resolved spatial gene expression from H&E histology.",
    epilog="Example: superst demo --out demo    (the whole way on a synthetic tissue, in minutes)",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
prepare = typer.Typer(
    help="Join a slide and its counts to a section, check that they fit, and store it.",
    epilog="Example: superst prepare visium outs --out A1.zarr",
    no_args_is_help=True,
)


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    """Super-resolved spatial gene expression from H&E histology."""
    if version:
        from superst_monai import __version__

        typer.echo(f"superst {__version__}")
        raise typer.Exit


add_command(app, "demo", demo, example="superst demo --out demo --minutes 4")
app.add_typer(prepare, name="prepare")
add_command(prepare, "visium", prepare_visium, example="superst prepare visium outs --image A1.svs --out A1.zarr")
add_command(
    prepare,
    "st",
    prepare_st,
    example="superst prepare st --counts C2.tsv.gz --image C2.jpg --spots C2_selection.tsv --out C2.zarr",
)
add_command(prepare, "h5ad", prepare_h5ad, example="superst prepare h5ad A1.h5ad --image A1.svs --out A1.zarr")
add_command(prepare, "slide", prepare_slide, example="superst prepare slide B7.svs --out B7.zarr")
add_command(
    app, "train", train, example="superst train A1.zarr B1.zarr --out run --covariate section=section --minutes 30"
)
add_command(app, "fit-section", fit_section, example="superst fit-section run C1.zarr")
add_command(app, "predict", predict, example="superst predict run B7.svs --out B7.maps.zarr")
add_command(app, "maps", gene_maps, example="superst maps B7.maps.zarr --genes ERBB2,CD3E --out figures")
add_command(app, "evaluate", evaluate, example="superst evaluate B1.maps.zarr --truth B1.zarr --out evaluation")
add_command(
    app,
    "export",
    export,
    example="superst export B7.maps.zarr --to cells --objects B7.geojson --genes CD3E --out B7.h5ad",
)
app.add_typer(analyze, name="analyze")
app.add_typer(bundle, name="bundle")
app.add_typer(experiment, name="experiment")
add_command(app, "inspect", inspect_store, example="superst inspect A1.zarr --out A1.png")
