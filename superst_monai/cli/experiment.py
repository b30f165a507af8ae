"""`superst experiment`: the paper's experiments, on any prepared sections."""

from __future__ import annotations

import typer

from superst_monai.cli.experiment_sections import holdout, restarts, runtime, stain
from superst_monai.cli.experiment_spots import (
    deconvolution_merged,
    deconvolution_synthetic,
    differential,
    misalignment,
    occlusion,
)
from superst_monai.cli.kernel import add_command

app = typer.Typer(
    help="Repeat an experiment of the paper: one figure, one table, one JSON.",
    epilog="Example: superst experiment holdout --train C2.zarr --train C6.zarr --test C3.zarr --out holdout --quick",
    no_args_is_help=True,
)
add_command(
    app,
    "holdout",
    holdout,
    example="superst experiment holdout A.zarr B.zarr C.zarr --leave-out patient --patient patient --out holdout",
)
add_command(app, "stain", stain, example="superst experiment stain --run run --test C3.zarr --out stain")
add_command(app, "restarts", restarts, example="superst experiment restarts C2.zarr C6.zarr --repeats 4 --out restarts")
add_command(app, "runtime", runtime, example="superst experiment runtime C2.zarr C3.zarr C6.zarr --out runtime")
add_command(
    app,
    "deconvolution-synthetic",
    deconvolution_synthetic,
    example="superst experiment deconvolution-synthetic --tissues 10 --minutes 4 --out synthetic",
)
add_command(
    app, "deconvolution-merged", deconvolution_merged, example="superst experiment deconvolution-merged C3.zarr --out m"
)
add_command(app, "misalignment", misalignment, example="superst experiment misalignment C3.zarr --out misalignment")
add_command(app, "occlusion", occlusion, example="superst experiment occlusion C3.zarr --share 0.2 --out occlusion")
add_command(
    app,
    "differential",
    differential,
    example="superst experiment differential M1.zarr --regions M1.geojson --of mitral --reference genes.txt --out d",
)
