"""Preflight of a section: do spots and slide share a frame, a scale and an orientation, and what is in the counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from superst_monai.data.alignment import Layout, factor_candidates, flip_agreement
from superst_monai.data.platforms.assay import Assay
from superst_monai.data.section import Section
from superst_monai.errors import AlignmentError

Verdict = Literal["ok", "warn", "fault"]

NOMINAL_DIAMETER_UM = {"visium": (55.0, 65.0), "st": (100.0,)}  # Space Ranger states 55 or, older, 65 um
NOMINAL_PITCH_UM = {
    "visium": 100.0
}  # between centres; that of "st" arrays is stated by the user and enters as assay.mpp
_SAME = 0.05  # two resolutions that differ by less are the same
_IMPOSSIBLE = 0.25  # a spot or pitch this far from the nominal one is another frame or a wrong mpp
_FEWEST_SPOTS = 30  # to tell the pitch from neighbours
_LISTED = 5


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, the verdict and the next step."""

    check: str
    value: str
    verdict: Verdict = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """What the preflight of one section found."""

    name: str
    rows: tuple[Check, ...]

    @property
    def faults(self) -> tuple[Check, ...]:
        """The checks that forbid going on."""
        return tuple(row for row in self.rows if row.verdict == "fault")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks to look at before going on."""
        return tuple(row for row in self.rows if row.verdict == "warn")

    @property
    def table(self) -> list[dict[str, str]]:
        """The rows as dictionaries with keys check, value, verdict and advice."""
        return [
            {"check": row.check, "value": row.value, "verdict": row.verdict, "advice": row.advice} for row in self.rows
        ]

    def raise_if_faulty(self) -> None:
        """Refuse the section, naming every fault.

        Raises:
            AlignmentError: there is a fault.
        """
        if self.faults:
            listed = "\n".join(f"- {row.check}: {row.value}; {row.advice}." for row in self.faults)
            raise AlignmentError(
                f"section {self.name} must fit its slide, {len(self.faults)} check(s) failed:\n{listed}"
            )


def preflight(section: Section, assay: Assay | None = None) -> Report:
    """Check a joined section before it is stored.

    Args:
        section: the section as joined.
        assay: the assay it was joined from; names the known scale factors and the mpp that the assay implies.
    Returns:
        The report; call `raise_if_faulty` on it.
    """
    rows = [_slide_row(section)]
    if section.has_counts:
        rows += _count_rows(section)
        rows.append(_barcode_row(section))
        rows += _geometry_rows(section, assay)
    return Report(section.name, tuple(rows))


def _slide_row(section: Section) -> Check:
    slide = section.slide
    size = f"{slide['width_px0']} x {slide['height_px0']} px at {_mpp_of(section):.4g} um"
    return Check("slide", f"{size} (from {slide.get('mpp_source', 'unknown')}), worked at {section.mpp:g} um")


def _mpp_of(section: Section) -> float:
    """Um per level-0 pixel of the slide, geometric mean of the axes."""
    return float(np.sqrt(float(section.slide["mpp_x"]) * float(section.slide["mpp_y"])))


def _count_rows(section: Section) -> list[Check]:
    """Numbers of the counts; spots and genes without counts are legal and stay."""
    counts = section.counts
    per_spot = np.asarray(counts.sum(axis=1)).ravel()
    per_gene = np.asarray(counts.sum(axis=0)).ravel()
    return [
        Check("spots", f"{section.n_spots}, {int((per_spot == 0).sum())} without counts (kept)"),
        Check("genes", f"{section.n_genes}, {int((per_gene == 0).sum())} without counts (kept)"),
        Check("counts per spot", f"median {np.median(per_spot):g}, {per_spot.min()} to {per_spot.max()}"),
    ]


def _barcode_row(section: Section) -> Check:
    """Barcodes must be there and unique: counts and spots are matched by them."""
    index = section.spots.index
    text = index.to_series().astype(str).str.strip().to_numpy()
    absent = np.asarray(index.isna()) | (text == "")
    repeated = index[index.duplicated() & ~absent].unique()
    if not absent.any() and len(repeated) == 0:
        return Check("barcodes", "unique")
    found = []
    if absent.any():
        rows = ", ".join(map(str, np.flatnonzero(absent)[:_LISTED]))
        found.append(f"{int(absent.sum())} missing (rows {rows})")
    if len(repeated):
        found.append(f"{len(repeated)} given more than once ({', '.join(map(str, repeated[:_LISTED]))})")
    return Check("barcodes", " and ".join(found), "fault", "give each spot one barcode of its own")


def _geometry_rows(section: Section, assay: Assay | None) -> list[Check]:
    """Where the spots under tissue lie, in the order: on slide, frame, scale, on tissue, orientation."""
    spots = _under_tissue(section.spots)
    place = spots[["x_um", "y_um", "radius_um"]].to_numpy(np.float64)  # (S, 3)
    finite = np.isfinite(place).all(axis=1) & (place[:, 2] > 0)
    if not finite.any():
        advice = "correct the spot table"
        return [Check("spots on slide", "no spot has a finite position and a positive radius", "fault", advice)]
    slide = section.slide
    size = np.array([slide["width_px0"] * slide["mpp_x"], slide["height_px0"] * slide["mpp_y"]], np.float64)
    layout = Layout(place[finite, :2], place[finite, 2], size, section.tissue, section.mpp)
    frame = _frame_row(section, assay, layout)
    mixed = frame.verdict == "fault"
    rows = [_on_slide_row(section, layout, mixed=mixed), frame, _diameter_row(section, layout, mixed=mixed)]
    rows += [_on_tissue_row(layout, mixed=mixed)]
    return rows if mixed else [*rows, _orientation_row(layout)]


def _under_tissue(spots: pd.DataFrame) -> pd.DataFrame:
    """The spots that the assay says lie under tissue; all where it does not say."""
    if "in_tissue" not in spots:
        return spots
    inside = pd.to_numeric(spots["in_tissue"], errors="coerce").fillna(0).to_numpy() != 0
    return spots[inside] if inside.any() else spots


def _on_slide_row(section: Section, layout: Layout, *, mixed: bool) -> Check:
    """Every centre must lie on the slide, spots beside the tissue included."""
    centre = section.spots[["x_um", "y_um"]].to_numpy(np.float64)
    off = ~layout.on_slide(centre)
    if not off.any():
        return Check("spots on slide", "all")
    i = int(np.argmax(off))
    x_px0, y_px0 = centre[i] / (float(section.slide["mpp_x"]), float(section.slide["mpp_y"]))
    value = (
        f"{int(off.sum())} of {len(off)} spots lie off the slide "
        f"(first: {section.spots.index[i]}, x_px0={x_px0:.1f}, y_px0={y_px0:.1f})"
    )
    advice = "correct the frame" if mixed else "pass the image that the coordinates belong to, or --image-scale"
    return Check("spots on slide", value, "fault", advice)


@dataclass(frozen=True)
class _Candidate:
    """A factor that would carry the spots into another frame, and how well they would lie there."""

    name: str
    factor: float
    fit: float


def _pitch_error(section: Section, layout: Layout) -> float | None:
    """Distance between neighbouring spots over the one that every array of the platform has; None where it varies.

    The low quantile is that of true neighbours also where spots were left out, unless few are left.
    """
    if len(layout.centre_um) < _FEWEST_SPOTS:
        return None
    nominal = NOMINAL_PITCH_UM.get(section.platform) if section.shape == "circle" else None
    pitch = layout.pitch_um(0.1)
    return pitch / nominal if pitch and nominal else None


def _scale_error(section: Section, assay: Assay | None, layout: Layout) -> float | None:
    """Scale of the coordinates over the true one, if slide and spots tell it independently.

    Where the slide's mpp came from the assay it follows the coordinates into any frame and so proves nothing.
    """
    if section.slide.get("mpp_source") == "assay":
        return None
    if assay is not None and assay.mpp is not None:
        return _mpp_of(section) / assay.mpp
    return _pitch_error(section, layout)


def _frame_row(section: Section, assay: Assay | None, layout: Layout) -> Check:
    """Recognise coordinates of another image of the same section and name the factor."""
    error = _scale_error(section, assay, layout)
    known = factor_candidates(assay.scale_factors) if assay is not None else {}
    if error is not None and abs(error - 1) > _SAME:
        known["um per px of the assay over that of the slide"] = 1 / error
    found = []
    for name, factor in known.items():
        moved = layout.scaled(factor)
        plausible = error is None or abs(error * factor - 1) < 2 * _SAME
        if plausible and moved.share_on_slide() > 0.99 and moved.share_on_tissue() >= 0.5:
            found.append(_Candidate(name, factor, moved.fit()))
    own = layout.fit()
    best = max(found, key=lambda candidate: candidate.fit, default=None)
    if best is not None and best.fit > own + 0.1 and (_in_trouble(layout, error) or best.fit > max(0.4, 3 * own)):
        return Check(
            "frame",
            f"the spots fit the slide when their coordinates are multiplied by {best.factor:.4g} ({best.name})",
            "fault",
            f"pass --image-scale {best.factor:.4g} (CLI) / image_scale= (Python), times the one in use if there is one",
        )
    return _mpp_row(section, error or _pitch_error(section, layout))


def _in_trouble(layout: Layout, error: float | None) -> bool:
    """Whether the spots as given lie off the slide or tissue or have an impossible scale."""
    off = layout.share_on_slide() < 1 or layout.share_on_tissue() < 0.5
    return off or (error is not None and abs(error - 1) > _SAME)


def _mpp_row(section: Section, error: float | None) -> Check:
    """The spots lie where they should; what remains is whether um per px are right."""
    if error is None:
        return Check("frame", "coordinates taken as given")
    value = f"distance between spots is {error:.3g} times the nominal one"
    if abs(error - 1) <= _SAME:
        return Check("frame", value)
    verdict: Verdict = "fault" if abs(error - 1) > _IMPOSSIBLE else "warn"
    right = _mpp_of(section) / error
    return Check("frame", value, verdict, f"if the slide's mpp is wrong pass --slide-mpp {right:.4g} / mpp={right:.4g}")


def _diameter_row(section: Section, layout: Layout, *, mixed: bool) -> Check:
    """The diameter of a spot is a constant of its platform."""
    diameter = 2 * float(np.median(layout.radius_um))
    what = "side" if section.shape == "square" else "diameter"
    nominal = NOMINAL_DIAMETER_UM.get(section.platform, ()) if section.shape == "circle" else ()
    if not nominal:
        return Check(f"spot {what}", f"{diameter:.4g} um")
    nearest = min(nominal, key=lambda n: abs(np.log(diameter / n)))
    value = f"{diameter:.4g} um, nominal {' or '.join(f'{n:g}' for n in nominal)} um"
    off = abs(diameter / nearest - 1)
    if off <= 0.1:
        return Check(f"spot {what}", value)
    advice = "correct the frame" if mixed else "check the mpp of the slide (--slide-mpp) and the diameter of the assay"
    return Check(f"spot {what}", value, "fault" if off > _IMPOSSIBLE else "warn", advice)


def _on_tissue_row(layout: Layout, *, mixed: bool) -> Check:
    share = layout.share_on_tissue()
    value = f"{share:.1%} of the spots' area"
    if share >= 0.8:
        return Check("spots on tissue", value)
    advice = "correct the frame" if mixed else "look at the overlay; check image, flips and the tissue mask"
    return Check("spots on tissue", value, "fault" if share < 0.5 else "warn", advice)


def _orientation_row(layout: Layout) -> Check:
    """Spots and the ground between them must match the tissue better as given than flipped."""
    scores = flip_agreement(layout)
    if not scores:
        return Check("orientation", "cannot be told, spots fill their bounding box")
    own = scores.pop("as given")
    name, best = max(scores.items(), key=lambda item: item[1], default=("", -1.0))
    value = f"agreement with tissue {own:.2f}"
    if own >= 0.9 or best < own + 0.1 or best < 0.5:
        return Check("orientation", value)
    advice = f"check whether the image is {name} against the coordinates"
    return Check(
        "orientation", f"{value}, {best:.2f} if {name}", "fault" if own < 0.5 and best >= 0.7 else "warn", advice
    )
