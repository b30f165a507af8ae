"""`superst prepare`: read an assay of any platform, join it with its slide, check and store the section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superst_monai.cli.kernel import given, if_interrupted
from superst_monai.cli.options import (
    Columns,
    Image,
    ImageScale,
    Mpp,
    Name,
    Overwrite,
    Section,
    SlideMpp,
    pairs,
    require_inputs,
    require_store_name,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from superst_monai.data.platforms.assay import Assay
    from superst_monai.data.slide import Slide


@dataclass(frozen=True)
class Target:
    """The section to write.

    Attributes:
        out: store.
        name: of the section; None takes the stem of `out`.
        columns: COLUMN=VALUE to add to the spots.
        mpp: working resolution, None for the usual one [um/px].
        slide_mpp: resolution of the slide, None for the file's [um per level-0 px].
        overwrite: replace a store of that name.
    Raises:
        StoreError: `out` is no name for a store, or taken.
    """

    out: Path
    name: str | None
    columns: list[str] | None
    mpp: float | None
    slide_mpp: float | None
    overwrite: bool

    def __post_init__(self) -> None:
        """Refuse the name before any file is read."""
        require_store_name(self.out, overwrite=self.overwrite)


def prepare_visium(
    outs: Annotated[Path, typer.Argument(help="Folder outs/ of Space Ranger, or one of binned_outputs/square_*.")],
    out: Section,
    image: Image = None,
    image_scale: ImageScale = None,
    slide_mpp: SlideMpp = None,
    mpp: Mpp = None,
    name: Name = None,
    columns: Columns = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a 10x Visium or Visium HD section from the output of Space Ranger."""
    require_inputs(OUTS=outs, **given(image=image))
    target = Target(out, name, columns, mpp, slide_mpp, overwrite)
    from superst_monai.data.platforms.visium import read_visium

    store(read_visium(outs, image=image, image_scale=image_scale), target)


def prepare_st(
    counts: Annotated[Path, typer.Option(help="Counts, tab separated: spots named XxY and genes.")],
    image: Annotated[Path, typer.Option(help="H&E image that the positions refer to.")],
    out: Section,
    spots: Annotated[Path | None, typer.Option(help="Spot table with pixel_x, pixel_y.", show_default=False)] = None,
    transform: Annotated[
        Path | None, typer.Option(help="Nine numbers: array coordinates to pixels.", show_default=False)
    ] = None,
    spot_diameter_um: Annotated[float | None, typer.Option(help="Width of a spot, um.", show_default="100.0")] = None,
    pitch_um: Annotated[
        float | None, typer.Option(help="Distance between neighbouring spots, um.", show_default="200.0")
    ] = None,
    slide_mpp: SlideMpp = None,
    mpp: Mpp = None,
    name: Name = None,
    columns: Columns = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a section of the Spatial Transcriptomics arrays; pass --spots or --transform."""
    require_inputs(counts=counts, image=image, **given(spots=spots, transform=transform))
    target = Target(out, name, columns, mpp, slide_mpp, overwrite)
    from superst_monai.data.platforms.st import read_st

    sizes = given(spot_diameter_um=spot_diameter_um, pitch_um=pitch_um)
    store(read_st(counts, image=image, spots=spots, transform=transform, **sizes), target)


def prepare_h5ad(
    file: Annotated[Path, typer.Argument(help="AnnData .h5ad with raw counts and obsm['spatial'].")],
    out: Section,
    image: Image = None,
    image_scale: ImageScale = None,
    spot_diameter_um: Annotated[
        float | None, typer.Option(help="Width of a spot, um.", show_default="that of the file")
    ] = None,
    slide_mpp: SlideMpp = None,
    mpp: Mpp = None,
    name: Name = None,
    columns: Columns = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a section from an AnnData file."""
    require_inputs(FILE=file, **given(image=image))
    target = Target(out, name, columns, mpp, slide_mpp, overwrite)
    from superst_monai.data.platforms.h5ad import read_h5ad

    assay = read_h5ad(
        file, image=image, image_scale=image_scale, spot_diameter_um=spot_diameter_um, slide_mpp=slide_mpp
    )
    store(assay, target)


def prepare_slide(
    slide: Annotated[Path, typer.Argument(help="H&E slide that was never sequenced.")],
    out: Section,
    slide_mpp: SlideMpp = None,
    mpp: Mpp = None,
    name: Name = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare a slide alone, without counts."""
    require_inputs(SLIDE=slide)
    store(slide, Target(out, name, None, mpp, slide_mpp, overwrite))


def store(source: Assay | Path, target: Target) -> None:
    """Join, check and write; with a fault in the checks nothing is written.

    Args:
        source: an assay with its image, or a slide alone.
        target: what to write.

    Raises:
        SuperstError: slide and assay do not fit, or the store cannot be written.
    """
    from superst_monai.analysis.overlay import overlay_figure, save_figure
    from superst_monai.cli.tables import show_checks, show_notes
    from superst_monai.data.preflight import preflight
    from superst_monai.data.section import join_section
    from superst_monai.data.store import write_section
    from superst_monai.transforms.tissue import find_tissue

    assay = None if isinstance(source, Path) else source
    name = target.name or target.out.stem
    columns = pairs(target.columns, "--set")
    with if_interrupted(lambda: "Nothing was written."):
        with open_image(source, target.slide_mpp, name) as slide:
            section = join_section(
                slide, assay, name=name, find_tissue=find_tissue, columns=columns, **given(mpp=target.mpp)
            )
        report = preflight(section, assay)
        show_notes(assay.notes if assay is not None else ())
        show_checks(name, report.table)
        report.raise_if_faulty()
        write_section(section, target.out, report=report, overwrite=target.overwrite)
    picture = target.out.with_suffix(".png")
    save_figure(overlay_figure(section), picture)
    typer.echo(f"wrote {target.out}, and {picture} to look at")


def open_image(source: Assay | Path, slide_mpp: float | None, name: str) -> Slide:
    """Open the slide of an assay, or a slide alone; the user's resolution wins, the assay's fills in."""
    from superst_monai.data.slide import Slide
    from superst_monai.errors import ResolutionError

    image: Path | NDArray[np.uint8] = source if isinstance(source, Path) else source.image
    implied = None if isinstance(source, Path) else source.mpp
    if isinstance(image, Path):
        return Slide.open(image, mpp=slide_mpp, fallback_mpp=implied)
    mpp = slide_mpp or implied
    if mpp is None:
        raise ResolutionError(f"the image of {name} must come with its resolution, but it has none; pass --slide-mpp.")
    return Slide.from_array(image, mpp=mpp, name=name)
