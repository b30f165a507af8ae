"""Preflight: each way in which slide and spots do not fit is recognised and named, and what fits passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from superst_monai.data.alignment import FLIPS, Layout, factor_candidates, flip_agreement
from superst_monai.data.platforms.assay import Assay
from superst_monai.data.platforms.st import read_st
from superst_monai.data.platforms.visium import read_visium
from superst_monai.data.preflight import Report, preflight
from superst_monai.data.section import Section, join_section
from superst_monai.data.slide import Slide
from superst_monai.errors import AlignmentError
from superst_monai.transforms.tissue import find_tissue

MakeAssay = Callable[..., Assay]
MakeSection = Callable[..., Section]


def verdicts(report: Report) -> dict[str, str]:
    """Verdict of each check."""
    return {row.check: row.verdict for row in report.rows}


def text(report: Report, check: str) -> str:
    """Value and advice of one check."""
    return next(f"{row.value}; {row.advice}" for row in report.rows if row.check == check)


def moved(section: Section, **columns: Any) -> Section:
    """The section with other columns in its spot table."""
    return replace(section, spots=section.spots.assign(**columns))


def test_a_section_that_fits_passes(make_assay: MakeAssay, make_section: MakeSection) -> None:
    """No check warns, and the numbers are those of the section."""
    section = make_section()
    report = preflight(section, make_assay())
    report.raise_if_faulty()
    assert set(verdicts(report).values()) == {"ok"}
    assert report.faults == report.warnings == ()
    assert text(report, "slide") == "800 x 600 px at 2 um (from caller), worked at 4 um; "
    assert text(report, "spots") == f"{section.n_spots}, 1 without counts (kept); "
    assert text(report, "genes") == "3, 1 without counts (kept); "
    assert text(report, "counts per spot").startswith(f"median {3 * (section.n_spots - 1) / 2:g}, 0 to ")
    assert text(report, "spot diameter") == "55 um, nominal 55 or 65 um; "
    assert text(report, "spots on tissue").startswith("9")


def test_the_table_has_one_dictionary_a_check(make_section: MakeSection) -> None:
    """The table is what the store keeps and the log prints."""
    report = preflight(make_section())
    assert [row["check"] for row in report.table] == [row.check for row in report.rows]
    assert all(list(row) == ["check", "value", "verdict", "advice"] for row in report.table)


def test_a_slide_alone_has_only_the_slide_to_check(make_section: MakeSection) -> None:
    """Without counts there is nothing to align."""
    assert list(verdicts(preflight(make_section(alone=True)))) == ["slide"]


def test_spots_off_the_slide_are_counted_and_the_first_is_named(make_section: MakeSection) -> None:
    """A shift is no other frame: the fault tells how many spots, which one and where."""
    section = make_section()
    x = section.spots["x_um"] - 300
    n = int((x < 0).sum())
    report = preflight(moved(section, x_um=x))
    first = x.index[np.argmax(x < 0)]
    assert f"{n} of {section.n_spots} spots lie off the slide (first: {first}, x_px0=" in text(report, "spots on slide")
    with pytest.raises(AlignmentError, match=r"section P must fit its slide, \d check\(s\) failed:\n- spots on slide"):
        report.raise_if_faulty()


def test_positions_that_are_not_finite_lie_off_the_slide(make_section: MakeSection) -> None:
    """NaN is on no slide; a table of nothing else is a fault of its own."""
    section = make_section()
    x = section.spots["x_um"].copy()
    x.iloc[3] = np.nan
    assert "1 of" in text(preflight(moved(section, x_um=x)), "spots on slide")
    report = preflight(moved(section, x_um=np.nan))
    assert verdicts(report)["spots on slide"] == "fault"
    assert "no spot has a finite position" in text(report, "spots on slide")


@pytest.mark.parametrize("source", ["assay", "caller"])
@pytest.mark.parametrize(
    ("factor", "answer"), [(4.0, "0.25 (tissue_hires_scalef)"), (0.25, "4 (1 / tissue_hires_scalef)")]
)
def test_coordinates_of_another_image_are_recognised(
    factor: float, answer: str, source: str, make_assay: MakeAssay, make_section: MakeSection
) -> None:
    """Full-resolution coordinates on a small image, and the reverse: the factor is named, whatever gave the mpp."""
    assay = make_assay(factor=factor, mpp=2.0 / factor)
    report = preflight(make_section(assay, source=source), assay)
    assert verdicts(report)["frame"] == "fault"
    assert f"multiplied by {answer}" in text(report, "frame")
    assert f"pass --image-scale {answer.split()[0]} (CLI)" in text(report, "frame")
    assert verdicts(report)["spots on slide"] == ("fault" if factor > 1 else "ok")


def test_two_resolutions_give_the_factor(make_assay: MakeAssay, make_section: MakeSection) -> None:
    """Without known factors the um per pixel of assay and slide tell it: here the image was reduced to 30 %."""
    assay = make_assay(factor=1 / 0.3, mpp=0.6, platform="st", scale_factors={})
    report = preflight(make_section(assay), assay)
    assert "multiplied by 0.3 (um per px of the assay over that of the slide)" in text(report, "frame")


@pytest.mark.parametrize(("slide_mpp", "verdict"), [(2.02, "ok"), (2.3, "warn"), (3.0, "fault"), (1.3, "fault")])
def test_a_wrong_mpp_is_told_from_a_wrong_frame(
    slide_mpp: float, verdict: str, make_assay: MakeAssay, make_section: MakeSection
) -> None:
    """Spots that lie right but at an impossible distance mean that the slide's mpp is wrong; the right one is named."""
    assay = make_assay()
    report = preflight(make_section(assay, slide_mpp=slide_mpp), assay)
    assert verdicts(report)["frame"] == verdict
    assert ("--slide-mpp 2 " in text(report, "frame")) == (verdict != "ok")
    assert verdicts(report)["spots on tissue"] == "ok"


def test_without_an_assay_the_pitch_still_tells(make_section: MakeSection) -> None:
    """A stored section is checked by the nominal distance of Visium's spots."""
    section = make_section()
    assert text(preflight(section), "frame") == "distance between spots is 1 times the nominal one; "
    unknown = replace(section, platform="h5ad")
    assert text(preflight(unknown), "frame") == "coordinates taken as given; "


@pytest.mark.parametrize("kept", [0.1, 0.5])
def test_left_out_spots_raise_no_alarm(kept: float, make_assay: MakeAssay, make_section: MakeSection) -> None:
    """A random subset of the spots still fits."""
    assay = make_assay()
    rows = np.sort(np.random.default_rng(0).permutation(len(assay.spots))[: int(kept * len(assay.spots))])
    part = replace(assay, counts=assay.counts[rows], spots=assay.spots.iloc[rows])
    assert not preflight(make_section(part), part).faults


def test_one_spot_can_be_checked(make_assay: MakeAssay, make_section: MakeSection) -> None:
    """A single spot has no pitch and no orientation."""
    assay = make_assay()
    one = replace(assay, counts=assay.counts[5:6], spots=assay.spots.iloc[5:6])
    report = preflight(make_section(one), one)
    assert not report.faults
    assert "cannot be told" in text(report, "orientation")


@pytest.mark.parametrize(
    ("platform", "diameter", "verdict"),
    [("visium", 55, "ok"), ("visium", 70, "ok"), ("visium", 76, "warn"), ("visium", 20, "fault"), ("st", 100, "ok"),
     ("st", 88, "warn"), ("st", 200, "fault"), ("h5ad", 7, "ok")],
)  # fmt: skip
def test_the_diameter_of_a_spot_is_that_of_its_platform(
    platform: str, diameter: float, verdict: str, make_section: MakeSection
) -> None:
    """Within 10 % is right, beyond 25 % impossible; unknown platforms are only reported."""
    section = replace(moved(make_section(), radius_um=diameter / 2), platform=platform)
    assert verdicts(preflight(section))["spot diameter"] == verdict


def test_squares_have_a_side_of_any_length(make_section: MakeSection) -> None:
    """Bins have no nominal size or distance."""
    report = preflight(replace(moved(make_section(), radius_um=4.0), shape="square"))
    assert text(report, "spot side") == "8 um; "
    assert verdicts(report)["frame"] == "ok"


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "ok"), (170.0, "warn"), (600.0, "fault")])
def test_spots_beside_the_tissue_are_noticed(shift: float, verdict: str, make_section: MakeSection) -> None:
    """Below 80 % of the area on tissue is a warning, below 50 % a fault."""
    section = make_section()
    y = np.minimum(section.spots["y_um"] + shift, 1199.0)
    assert verdicts(preflight(moved(section, y_um=y)))["spots on tissue"] == verdict


def test_only_spots_said_to_be_in_tissue_must_be_on_it(make_section: MakeSection) -> None:
    """A whole capture area with `in_tissue` passes; the column is ignored when it says nothing."""
    section = make_section()
    inside = np.arange(section.n_spots) % 3 == 0
    x = np.where(inside, section.spots["x_um"], 10.0)
    assert verdicts(preflight(moved(section, x_um=x, in_tissue=inside.astype(int))))["spots on tissue"] == "ok"
    assert verdicts(preflight(moved(section, x_um=x)))["spots on tissue"] == "fault"
    assert verdicts(preflight(moved(section, in_tissue=0)))["spots on tissue"] == "ok"


def test_missing_and_repeated_barcodes_are_listed(make_section: MakeSection) -> None:
    """Both faults come in one line, with at most five examples."""
    section = make_section()
    names = [f"S{i % 7}" for i in range(section.n_spots)]
    names[10], names[20] = "", " "
    report = preflight(replace(section, spots=section.spots.set_axis(names)))
    assert text(report, "barcodes") == (
        "2 missing (rows 10, 20) and 7 given more than once (S0, S1, S2, S4, S5); give each spot one barcode of its own"
    )
    missing = [None, *section.spots.index[1:]]
    assert "1 missing (rows 0); " in text(
        preflight(replace(section, spots=section.spots.set_axis(missing))), "barcodes"
    )
    twice = [*section.spots.index[:-1], "S0"]
    assert text(preflight(replace(section, spots=section.spots.set_axis(twice))), "barcodes").startswith("1 given more")


@pytest.mark.parametrize("name", ["flipped left-right", "flipped top-bottom", "turned by 180 degrees"])
def test_a_flip_is_named(name: str, make_section: MakeSection) -> None:
    """Spots mirrored about the slide agree better when mirrored back; all flips here are their own inverse."""
    section = make_section()
    points = FLIPS[name](section.spots[["x_um", "y_um"]].to_numpy(), np.array([1600.0, 1200.0]))
    report = preflight(moved(section, x_um=points[:, 0], y_um=points[:, 1]))
    assert verdicts(report)["orientation"] in ("warn", "fault")
    assert name in text(report, "orientation")


def test_all_faults_come_at_once(make_section: MakeSection) -> None:
    """The error names every failed check, one a line."""
    section = make_section()
    broken = moved(section, x_um=section.spots["x_um"] + 5000, radius_um=500.0).spots.set_axis(["a"] * section.n_spots)
    with pytest.raises(
        AlignmentError, match=r"(?s)4 check.*- barcodes: .*- spots on slide: .*- spot diam.*- spots on ti"
    ):
        preflight(replace(section, spots=broken)).raise_if_faulty()


def layout(points: NDArray[np.float64], tissue: NDArray[np.bool_], mpp: float = 1.0) -> Layout:
    """Spots of radius 1 on a slide as large as the mask."""
    size = np.array(tissue.shape[::-1], float) * mpp
    return Layout(points, np.ones(len(points)), size, tissue, mpp)


def test_flips_are_the_symmetries_of_a_square() -> None:
    """On a square slide the seven arrangements and the identity move a point to eight places, all on the slide."""
    size = np.array([10.0, 10.0])
    point = np.array([[1.0, 3.0]])
    places = {tuple(move(point, size)[0]) for move in FLIPS.values()} | {(1.0, 3.0)}
    assert places == {(1, 3), (9, 3), (1, 7), (9, 7), (3, 1), (7, 1), (3, 9), (7, 9)}


def test_transposes_must_stay_on_the_slide() -> None:
    """On a wide slide spots at the far right cannot be transposed."""
    tissue = np.zeros((20, 60), bool)
    tissue[5:15, 40:60] = True
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(31.0, 60, 3), np.arange(1.0, 20, 3)))
    inside = tissue[y.astype(int), x.astype(int)] | (x < 33)
    scores = flip_agreement(layout(np.stack([x, y], axis=1)[inside], tissue))
    assert set(scores) == {"as given", "flipped left-right", "flipped top-bottom", "turned by 180 degrees"}
    assert scores["as given"] == max(scores.values())


def test_a_constant_says_nothing() -> None:
    """All-tissue ground agrees with nothing: the score is zero, not NaN."""
    points = np.array([[1.0, 1.0], [1.0, 3.0], [9.0, 9.0], [9.0, 7.0]])
    assert set(flip_agreement(layout(points, np.ones((10, 10), bool))).values()) == {0.0}


def test_extents_overlap_as_boxes() -> None:
    """Boxes of 4 x 4 and 4 x 4 that share 2 x 4 have an intersection over union of a third."""
    tissue = np.zeros((10, 10), bool)
    tissue[2:6, 2:6] = True
    np.testing.assert_allclose(layout(np.array([[5.0, 3.0], [7.0, 5.0]]), tissue).extent_overlap(), 1 / 3)


def test_factors_join_any_two_known_frames() -> None:
    """Full resolution, hires and lowres give six ratios; frames that are the same give none."""
    factors = factor_candidates({"hires": 0.5, "lowres": 0.1, "same": 1.0, "broken": float("nan")})
    assert factors["hires"] == 0.5
    assert factors["1 / lowres"] == 10
    assert factors["lowres / hires"] == 0.2
    assert "same" not in factors
    assert all(np.isfinite(list(factors.values())))


def real(name: str, folder: Path) -> Assay:
    """The assay of one real section."""
    if name == "visium_brca":
        return read_visium(folder / "visium_brca" / "outs")
    if name == "cytassist":
        return read_visium(folder / "visium_formats" / "cytassist_mtx")
    stem = folder / "her2st"
    return read_st(stem / f"{name}.tsv.gz", image=stem / f"{name}.jpg", spots=stem / f"{name}_selection.tsv")


@pytest.mark.parametrize(("name", "mpp"), [("C6", 8.0), ("visium_brca", 4.0), ("cytassist", 24.0)])
def test_real_sections_raise_no_alarm(name: str, mpp: float, shared_data: Path) -> None:
    """Sections as published pass every check."""
    assay = real(name, shared_data)
    assert isinstance(assay.image, Path)
    with Slide.open(assay.image, fallback_mpp=assay.mpp) as slide:
        section = join_section(slide, assay, mpp=mpp, name=name, find_tissue=find_tissue)
    report = preflight(section, assay)
    assert pd.Series(verdicts(report)).eq("ok").all(), report.rows
