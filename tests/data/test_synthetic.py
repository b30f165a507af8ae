"""The synthetic tissue: its counts follow the additive law, its picture shows the truth, its slide opens anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from scipy.spatial import KDTree

from superst_monai.data import synthetic_image as picture
from superst_monai.data.synthetic import SUBTYPES, SyntheticTissue, make_tissue, to_assay, write_slide
from superst_monai.errors import RunError, SlideError


@pytest.fixture(scope="module")
def tissue() -> SyntheticTissue:
    """A tissue of 2.4 mm at 4 um per pixel."""
    return make_tissue(seed=1, size_px=600, mpp=4.0, n_genes=30)


def spot_mask(tissue: SyntheticTissue, spot: int) -> np.ndarray:
    """Pixels `(H, W)` whose centre lies in a spot, the slow plain way."""
    row, col = np.indices(tissue.tissue.shape)
    place = tissue.spots.iloc[spot]
    return np.hypot(col + 0.5 - place.x_px0, row + 0.5 - place.y_px0) <= place.diameter_px0 / 2


def test_same_seed_gives_the_same_bits():
    """One seed makes one tissue; another seed, another; the number of genes changes no pixel."""
    first, again = (make_tissue(seed=3, size_px=150, mpp=4.0, n_genes=20) for _ in range(2))
    other = make_tissue(seed=4, size_px=150, mpp=4.0, n_genes=20)
    more = make_tissue(seed=3, size_px=150, mpp=4.0, n_genes=24)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.counts.toarray(), again.counts.toarray())
    np.testing.assert_array_equal(first.image, more.image)
    assert (first.image != other.image).mean() > 0.5


def test_counts_follow_the_additive_negative_binomial(tissue):
    """Counts minus the sum of the spot's pixels have mean 0 and variance mean * (1 + exp(logit)) (standardised)."""
    spots = np.stack([spot_mask(tissue, s) for s in range(len(tissue.spots))]) & tissue.tissue  # (S, H, W)
    area = np.stack([(spots & (tissue.subtype == k)).sum((1, 2)) for k in range(4)], axis=1)
    mean = area @ tissue.profiles
    standard = (tissue.counts.toarray() - mean) / np.sqrt(mean * (1 + np.exp(tissue.logits)))
    assert standard.size > 10_000
    assert abs(standard.mean()) < 4 / np.sqrt(standard.size)
    assert (standard**2).mean() == pytest.approx(1.0, abs=0.1)
    assert tissue.counts.dtype == np.int32


def test_expected_map_sums_to_the_mean_of_a_spot(tissue):
    """The map of a gene over the pixels of a spot is its area-weighted profile, and glass expresses nothing."""
    gene = tissue.genes.index[7]
    here = spot_mask(tissue, 40)
    kinds = tissue.subtype[here & tissue.tissue]
    assert tissue.expected(gene)[here].sum() == pytest.approx(tissue.profiles[kinds, 7].sum(), rel=1e-5)
    assert (tissue.expected(gene)[~tissue.tissue] == 0).all()


def test_expected_umis_are_conserved_when_pixels_grow(tissue):
    """A coarser map holds the same number of UMIs: 2 x 2 pixels become their sum."""
    fine = tissue.expected("circle-01").astype(np.float64)
    np.testing.assert_allclose(
        tissue.expected("circle-01", mpp=8.0), fine.reshape(300, 2, 300, 2).sum((1, 3)), rtol=1e-4, atol=1e-7
    )


def test_truth_at_a_coarser_mpp_is_the_majority(tissue):
    """A coarse pixel belongs to a subtype that covers more than half of it (against block means)."""
    for kind in range(4):
        mask = (tissue.subtype == kind) & tissue.tissue
        np.testing.assert_array_equal(tissue.truth(kind), mask)
        blocks = mask.reshape(200, 3, 200, 3).mean((1, 3)) > 0.5
        np.testing.assert_array_equal(tissue.truth(kind, mpp=12.0), blocks)
    np.testing.assert_array_equal(tissue.tissue_at(12.0), tissue.tissue.reshape(200, 3, 200, 3).mean((1, 3)) > 0.5)


def test_an_unknown_gene_is_refused(tissue):
    """A gene that the tissue lacks raises and is named."""
    with pytest.raises(RunError, match="one of the 30 synthetic genes, got 'EPCAM'"):
        tissue.expected("EPCAM")


def test_markers_mark_their_subtype(tissue):
    """Relative to housekeeping genes every marker is ten times as high in its own subtype as in another."""
    house = tissue.profiles[:, tissue.genes.index.str.startswith("house")].sum(1)
    share = tissue.profiles / house[:, None]
    for kind, name in enumerate(SUBTYPES):
        own = share[:, (tissue.genes["subtype"] == name).to_numpy()]
        assert own.shape[1] >= 2
        np.testing.assert_allclose(own[kind] / np.delete(own, kind, axis=0), 10.0)


def test_profiles_scale_with_the_area_of_a_pixel():
    """A pixel of twice the side holds four times the UMIs, so that spots of one size hold the same."""
    fine, coarse = (make_tissue(seed=2, size_px=round(800 / mpp), mpp=mpp, n_genes=12) for mpp in (2.0, 4.0))
    np.testing.assert_allclose(coarse.profiles, 4 * fine.profiles)
    assert fine.counts.sum(1).mean() == pytest.approx(coarse.counts.sum(1).mean(), rel=0.15)


def test_spots_lie_on_a_hexagonal_grid_over_tissue(tissue):
    """Every inner spot has six neighbours one pitch away; centres lie in tissue; array columns step by two."""
    place = tissue.spots[["x_px0", "y_px0"]].to_numpy() * tissue.mpp
    distance, _ = KDTree(place).query(place, k=7)
    inner = np.hypot(*(place - 1200).T) < 700
    assert inner.sum() > 100
    np.testing.assert_allclose(distance[inner][:, 1:], 100.0, rtol=1e-9)
    assert tissue.tissue[tuple((place[:, ::-1] / tissue.mpp).astype(int).T)].all()
    assert ((tissue.spots["array_row"] + tissue.spots["array_col"]) % 2 == 0).all()
    assert 300 <= len(tissue.spots) <= 500


def test_spots_mix_subtypes(tissue):
    """Many spots hold cells of at least two subtypes: the counts alone do not tell where they lie."""
    masks = [spot_mask(tissue, s) for s in range(0, len(tissue.spots), 5)]
    n_kinds = [sum((tissue.subtype[mask] == k).any() for k in (1, 2, 3)) for mask in masks]
    assert np.mean(np.array(n_kinds) >= 2) > 0.35
    assert all((tissue.subtype == k).sum() > 0.05 * tissue.tissue.sum() for k in (1, 2, 3))


@pytest.mark.parametrize(
    ("kind", "area_um2"),
    [(1, np.pi * 18.0**2), (2, 4 * 22.0**2), (3, 3 * np.sqrt(3) * 15.2**2)],
    ids=["circle", "square", "triangle"],
)
def test_cells_have_the_area_of_their_shape(kind, area_um2):
    """A drawn cell covers the closed-form area of its polygon, whatever its angle."""
    for angle in (0.0, 0.7):
        one = [np.array([v]) for v in (40.3, 39.1)]
        cells = picture.Cells(*one, np.array([kind]), np.array([angle]), np.array([1.0]))
        subtype, depth, owner = picture.draw_cells(cells, 320, 0.25)
        assert (subtype == kind).sum() * 0.25**2 == pytest.approx(area_um2, rel=0.01)
        np.testing.assert_array_equal(owner == 0, subtype == kind)
        np.testing.assert_array_equal(depth > 0, subtype == kind)
        row, col = np.nonzero(subtype)
        assert ((col + 0.5).mean() * 0.25, (row + 0.5).mean() * 0.25) == pytest.approx((40.3, 39.1), abs=0.15)


def test_touching_cells_share_out_their_pixels():
    """Where two cells meet, each pixel goes to the one in whose outline it lies deeper."""
    cells = picture.Cells(np.array([38.0, 64.0]), np.array([40.0, 40.0]), np.array([1, 2]), np.zeros(2), np.ones(2))
    subtype, _, owner = picture.draw_cells(cells, 420, 0.25)
    assert set(np.unique(owner)) == {-1, 0, 1}
    np.testing.assert_array_equal(subtype, np.array([1, 2, 0])[owner])
    middle = 0.5 * ((38.0 + 18.0) + (64.0 - 22.0)) / 0.25  # where the two outlines are equally far
    assert subtype[160, int(middle) - 2] == 1
    assert subtype[160, int(middle) + 2] == 2


def test_colour_does_not_tell_the_shapes_apart():
    """At equal depth inside the outline the three shapes have one mean colour (within two grey levels)."""
    rng = np.random.default_rng(0)
    mask = picture.draw_tissue(rng, 600)
    cells = picture.place_cells(rng, mask, 2.0)
    subtype, depth, owner = picture.draw_cells(cells, 600, 2.0)
    image = picture.stain(rng, mask, depth, owner, 2.0)
    colour = [image[(subtype == k) & (depth > 4) & (depth < 7)].mean(0) for k in (1, 2, 3)]
    assert np.ptp(colour, axis=0).max() < 5.0
    assert len(cells.kind) > 150


def test_the_picture_is_purple_cells_on_pink_stroma_on_white(tissue):
    """Glass is white; stroma is pink (red above blue above green); cells are darker and blue above red."""
    glass = np.median(tissue.image[~tissue.tissue], axis=0)
    stroma = np.median(tissue.image[tissue.truth(0)], axis=0)
    cells = np.median(tissue.image[tissue.subtype > 0], axis=0)
    assert glass.min() > 235
    assert stroma[0] > stroma[2] > stroma[1]
    assert cells[2] > cells[0] > cells[1]
    assert cells.mean() < stroma.mean() - 40
    assert tissue.image.dtype == np.uint8


def test_no_tissue_touches_the_border():
    """The border of the slide is glass, for any seed: spots never reach beyond the slide's tissue."""
    for seed in range(5):
        mask = picture.draw_tissue(np.random.default_rng(seed), 50)
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()
        assert 0.4 < mask.mean() < 0.8


def test_every_fault_of_the_arguments_is_reported_at_once():
    """All arguments that do not fit are named in one error."""
    with pytest.raises(RunError, match=r"at least 300 um, got 20 \* 7.0; mpp .* 7.0; n_genes .* 3; spot_diameter_um"):
        make_tissue(seed=0, size_px=20, mpp=7.0, n_genes=3, spot_diameter_um=120.0)


def test_overlapping_spots_are_refused():
    """Spots wider than their pitch would count pixels twice and raise."""
    with pytest.raises(RunError, match=r"got 110\.0 with mpp 1\.0 and pitch_um 100\.0"):
        make_tissue(seed=0, spot_diameter_um=110.0)


def test_openslide_reads_the_written_slide(tissue, tmp_path: Path):
    """The file is a tiled pyramid with its mpp; level 0 is the image and level 2 its average (JPEG's loss aside)."""
    path = tmp_path / "tissue.tif"
    write_slide(tissue, path)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(4.0)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(4.0)
        assert slide.level_dimensions == ((600, 600), (300, 300), (150, 150))
        assert slide.properties["openslide.level[0].tile-width"] == "256"
        full = np.asarray(slide.read_region((0, 0), 0, (600, 600)))[..., :3].astype(float)
        small = np.asarray(slide.read_region((0, 0), 2, (150, 150)))[..., :3].astype(float)
    average = tissue.image.reshape(150, 4, 150, 4, 3).mean((1, 3))
    for read, drawn in ((full, tissue.image), (small, average)):
        assert np.abs(read - drawn).mean() < 5
        assert np.corrcoef(read.ravel(), drawn.ravel())[0, 1] > 0.98
    assert list(tmp_path.iterdir()) == [path]


def test_a_slide_is_written_to_the_same_bytes(tissue, tmp_path: Path):
    """Writing twice gives one file: no date or host enters it; more levels may be asked for."""
    write_slide(tissue, tmp_path / "a.tif")
    write_slide(tissue, tmp_path / "b.tif")
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    write_slide(tissue, tmp_path / "a.tif", levels=4)
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert slide.level_count == 4


def test_a_slide_that_cannot_be_written_leaves_nothing(tissue, tmp_path: Path):
    """A target that is a folder, or in no folder, raises and leaves no partial file."""
    (tmp_path / "taken.tif").mkdir()
    with pytest.raises(SlideError, match=r"taken\.tif must be writable"):
        write_slide(tissue, tmp_path / "taken.tif")
    with pytest.raises(SlideError, match=r"must be writable, got: .*No such file"):
        write_slide(tissue, tmp_path / "absent" / "a.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.tif"]


def test_the_assay_names_the_slide_and_keeps_the_counts(tissue, tmp_path: Path):
    """The assay carries counts, positions and mpp; the image is the file where one is named, else the pixels."""
    assay = to_assay(tissue, tmp_path / "a.tif")
    assert assay.image == tmp_path / "a.tif"
    assert assay.mpp == 4.0
    assert assay.shape == "circle"
    np.testing.assert_array_equal(assay.counts.toarray(), tissue.counts.toarray())
    np.testing.assert_allclose(assay.spots["diameter_px0"], 16.25)
    assert list(assay.genes["gene_id"][:2]) == ["SYN00000001", "SYN00000002"]
    assert to_assay(tissue).image is tissue.image
