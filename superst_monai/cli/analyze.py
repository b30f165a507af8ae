"""`superst analyze`: what metagenes, genes, regions and cell types posterior maps tell of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from superst_monai.cli.export import Kind
from superst_monai.cli.kernel import add_command, given
from superst_monai.cli.options import Folder, gene_list, pairs, require_inputs
from superst_monai.errors import RunError

Several = Annotated[list[Path], typer.Argument(metavar="MAPS.zarr...", help="Posterior maps of superst predict.")]
Genes = Annotated[str | None, typer.Option(metavar="A,B", help="Genes, separated by commas.", show_default="all")]
Condition = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=LEVEL", help="Compute as if a covariate had this level; repeatable.", show_default=False
    ),
]
Remove = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Compute without the effect of a covariate; repeatable.", show_default=False),
]
Regions = Annotated[
    list[Path] | None,
    typer.Option(help="GeoJSON, label image, or section with `regions`; one for each MAPS.", show_default=False),
]


class Per(StrEnum):
    """What expression is divided by, to be compared between regions."""

    SCALE = "scale"
    AREA = "area"


class PerSupport(StrEnum):
    """What expected counts are divided by."""

    SUPPORT = "support"
    AREA = "area"
    SCALE = "scale"


app = typer.Typer(
    help="Analyse posterior maps: metagenes, genes, regions, cell types.",
    epilog="Example: superst analyze metagenes A1.maps.zarr B1.maps.zarr --out metagenes",
    no_args_is_help=True,
)


def metagenes(
    maps: Several,
    out: Folder,
    top: Annotated[int | None, typer.Option(help="Genes of each direction to show.", show_default="12")] = None,
) -> None:
    """Describe metagenes by their genes and place, and all expression by one picture with common colours."""
    require_inputs(MAPS=maps)
    from superst_monai.analysis.metagene_summary_figures import write_metagenes

    _say(write_metagenes(maps, out, **given(top=top)))


def genes(
    maps: Several,
    genes: Annotated[str, typer.Option(metavar="A,B", help="Genes, separated by commas.")],
    out: Folder,
    common_range: Annotated[
        bool, typer.Option("--common-range", help="Colours of a gene end at the same numbers on all sections.")
    ] = False,
) -> None:
    """Draw genes: expected UMIs, and the fold change against the section's mean with its uncertainty."""
    require_inputs(MAPS=maps)
    wanted = gene_list(genes)
    from superst_monai.analysis.gene_folds import write_gene_folds

    _say(write_gene_folds(maps, wanted, out, common_range=common_range))


def impute(
    maps: Several,
    to: Annotated[Kind, typer.Option(help="What to sum the expression over.", show_choices=True)],
    out: Folder,
    objects: Annotated[
        list[Path] | None,
        typer.Option(
            help="Section of the spots; GeoJSON or label image of cells or regions; one for each MAPS.",
            show_default=False,
        ),
    ] = None,
    bin_um: Annotated[float | None, typer.Option(help="Side of a bin, um.", show_default=False)] = None,
    genes: Genes = None,
    per: Annotated[
        PerSupport | None, typer.Option(help="What the expected counts are divided by.", show_default="support")
    ] = None,
    condition: Condition = None,
    remove: Remove = None,
) -> None:
    """Compute expected counts of bins, spots, cells or regions, normalised, under any condition of the run."""
    require_inputs(MAPS=maps, objects=objects)
    conditions = _conditions(condition, remove)
    wanted = None if genes is None else gene_list(genes)
    from superst_monai.analysis.imputation import write_imputation

    options = given(objects=objects, bin_um=bin_um, genes=wanted, per=None if per is None else per.value)
    _say(write_imputation(maps, out, to=to.value, conditions=conditions, say=_note, **options))


def differential(
    maps: Several,
    regions: Annotated[
        list[Path], typer.Option(help="GeoJSON, label image, or section with `regions`; one for each MAPS.")
    ],
    of: Annotated[str, typer.Option(metavar="NAME", help="Class or name of the region.")],
    out: Folder,
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Class or name of the other region.", show_default="the other tissue"),
    ] = None,
    per: Annotated[Per | None, typer.Option(help="What expression is divided by.", show_default="scale")] = None,
    counts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Measured section of each MAPS: fold changes follow the counts of its spots, and the intervals hold "
            "what the model misses.",
            show_default=False,
        ),
    ] = None,
    condition: Condition = None,
    remove: Remove = None,
) -> None:
    """Compare the expression of all genes in two annotated regions, with its uncertainty."""
    require_inputs(MAPS=maps, regions=regions, counts=counts)
    conditions = _conditions(condition, remove)
    if counts and len(counts) != len(maps):
        raise RunError(f"--counts must name one section for each MAPS, got {len(counts)} for {len(maps)}.")
    from superst_monai.analysis.counted_regions import count_regions
    from superst_monai.analysis.differential_figures import write_differential
    from superst_monai.analysis.regions import read_regions
    from superst_monai.analysis.several_maps import open_several

    several = open_several(maps, conditions=conditions)
    masks = read_regions(several, regions, of, against, say=_note)
    names = (of, "the other tissue" if against is None else against)
    options = given(per=None if per is None else per.value)
    if counts:
        from superst_monai.data.store import read_section

        measured = [one.maps for one in open_several(maps)]  # under the conditions in which the spots were counted
        options["counted"] = count_regions(measured, [read_section(path) for path in counts], masks)
    _say(write_differential(several, masks, out, names=names, **options))


def cell_types(
    maps: Several,
    out: Folder,
    reference: Annotated[
        Path | None, typer.Option(help="Single-cell counts, .h5ad; goes with --labels.", show_default=False)
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of its obs with the type.", show_default=False)
    ] = None,
    markers: Annotated[
        Path | None, typer.Option(help="CSV with columns cell_type, gene and perhaps weight.", show_default=False)
    ] = None,
    regions: Regions = None,
    border: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Region to whose border distances are taken.", show_default=False),
    ] = None,
) -> None:
    """Score cell types per pixel and spot, from single-cell counts or a marker table."""
    require_inputs(MAPS=maps, reference=reference, markers=markers, regions=regions)
    _check_cell_types(reference, labels, markers, regions, border)
    from superst_monai.analysis.cell_types_figures import write_cell_types
    from superst_monai.analysis.cell_types_reference import read_markers, read_reference
    from superst_monai.analysis.regions import read_regions
    from superst_monai.analysis.several_maps import open_several

    several = open_several(maps)
    known = read_markers(markers) if markers is not None else read_reference(reference or "", labels or "")
    inside = None
    if regions and border is not None:
        inside = [mask for mask, _ in read_regions(several, regions, border, say=_note)]
    _say(write_cell_types(several, known, out, **given(regions=inside, region_name=border)))


def _check_cell_types(
    reference: Path | None,
    labels: str | None,
    markers: Path | None,
    regions: Sequence[Path] | None,
    border: str | None,
) -> None:
    """Refuse options that do not go together, all at once."""
    faults = []
    if (reference is None) == (markers is None):
        faults.append("pass either --reference or --markers")
    if (reference is None) != (labels is None):
        faults.append("--reference and --labels go together")
    if (not regions) != (border is None):
        faults.append("--regions and --border go together")
    if faults:
        raise RunError("; ".join(faults) + ".")


def _conditions(condition: Sequence[str] | None, remove: Sequence[str] | None) -> dict[str, str | None]:
    """Level of each covariate to change, None for one to take out."""
    found: dict[str, str | None] = dict(pairs(condition, "--condition"))
    both = [name for name in remove or () if name in found]
    if both:
        raise RunError(f"--condition and --remove both name {', '.join(both)}; set the covariate or take it out.")
    return found | dict.fromkeys(remove or ())


def _note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)


def _say(written: Iterable[Path]) -> None:
    for path in written:
        typer.echo(f"wrote {path}")


add_command(app, "metagenes", metagenes, example="superst analyze metagenes A1.maps.zarr B1.maps.zarr --out metagenes")
add_command(app, "genes", genes, example="superst analyze genes A1.maps.zarr --genes ERBB2,CD3E --out genes")
add_command(
    app,
    "impute",
    impute,
    example="superst analyze impute A1.maps.zarr --to bins --bin-um 50 --per area --remove section --out imputed",
)
add_command(
    app,
    "differential",
    differential,
    example="superst analyze differential A1.maps.zarr --regions A1.geojson --of Tumor --against Stroma --out tumor",
)
add_command(
    app,
    "cell-types",
    cell_types,
    example="superst analyze cell-types A1.maps.zarr --markers m.csv --regions A1.geojson --border Tumor --out types",
)
