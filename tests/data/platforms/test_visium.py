"""Space Ranger folders of every version give the known spots in px of the chosen image."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from superst_monai.data.platforms.visium import read_visium
from superst_monai.errors import AssayError, SlideError

MPP_FULLRES = 2.0  # of the known array


def assert_known(assay, known, scale):
    """The spots under tissue stand in the order of the counts with their counts, at `scale`."""
    kept = known.under_tissue
    np.testing.assert_array_equal(assay.counts.toarray(), known.counts[kept])
    assert assay.spots.index.tolist() == [known.barcodes[i] for i in kept]
    assert assay.spots.index.name == "barcode"
    np.testing.assert_allclose(assay.spots["x_px0"], known.x_fullres[kept] * scale)
    np.testing.assert_allclose(assay.spots["y_px0"], known.y_fullres[kept] * scale)
    np.testing.assert_array_equal(assay.spots["array_row"], known.array_row[kept])
    np.testing.assert_array_equal(assay.spots["array_col"], known.array_col[kept])
    assert assay.spots["array_row"].dtype == np.int64
    assert assay.genes.index.tolist() == ["ACTB", "TBCE", "GAPDH", "TBCE-1", "XIST"]
    assert assay.genes["gene_id"].tolist() == known.ids
    assert assay.platform == "visium"


def change_factors(outs, **changes):
    """Rewrite the scale factors; None leaves one out."""
    path = outs / "spatial" / "scalefactors_json.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_space_ranger_2_folder_gives_the_known_spots_on_its_hires_image(outs, known):
    """Positions, diameter and mpp are those of the hires image, and every decision is noted."""
    assay = read_visium(outs)
    assert_known(assay, known, 0.5)
    np.testing.assert_allclose(assay.spots["diameter_px0"], 27.5 * 0.5)
    assert assay.mpp == pytest.approx(MPP_FULLRES / 0.5)
    assert assay.image == outs / "spatial" / "tissue_hires_image.png"
    assert assay.scale_factors == {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}
    assert assay.shape == "circle"
    said = "\n".join(assay.notes)
    for part in (
        "counts read from filtered_feature_bc_matrix.h5",
        "multiplied by 0.5 (tissue_hires_scalef) to fit image tissue_hires_image.png",
        "positions read from tissue_positions.csv",
        "2 of 12 spots with counts are not under tissue and were left out",
        "full-resolution mpp 2 um/px from the array's pitch of 100 um",
        "spot_diameter_fullres is 27.5 px = 55.0 um",
        "1 of 5 gene names were repeated",
    ):
        assert part in said


@pytest.mark.parametrize("name", ["tissue_positions_list.csv", "tissue_positions.parquet", "tissue_positions.csv.gz"])
@pytest.mark.parametrize("in_spatial", [True, False])
def test_positions_of_every_version_and_place_are_read(outs, known, write, name, in_spatial):
    """Without header, as parquet, gzipped; in spatial/ or directly in the folder."""
    (outs / "spatial" / "tissue_positions.csv").unlink()
    path = (outs / "spatial" if in_spatial else outs) / name
    table = write.positions(known)
    if name.endswith("parquet"):
        table.to_parquet(path, index=False)
    else:
        write.text(path, table.to_csv(index=False, header="list" not in name))
    if not in_spatial:
        for file in (outs / "spatial").iterdir():
            shutil.move(file, outs / file.name)
    assert_known(read_visium(outs), known, 0.5)


def test_parquet_with_barcodes_as_index_is_read(outs, known, write):
    """Barcodes may be the table's index."""
    write.positions(known).set_index("barcode").to_parquet(outs / "spatial" / "tissue_positions.parquet")
    assay = read_visium(outs)
    assert_known(assay, known, 0.5)
    assert "positions read from tissue_positions.parquet" in assay.notes


def test_an_mtx_folder_is_read(outs, known, write):
    """Counts may be three text files."""
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    write.mtx(outs / "filtered_feature_bc_matrix", known, packed=True, features="features.tsv", columns=3)
    assert_known(read_visium(outs), known, 0.5)


def test_raw_counts_stand_in_for_filtered_ones(outs, known):
    """Raw counts are cut to the spots under tissue, and noted."""
    (outs / "filtered_feature_bc_matrix.h5").rename(outs / "raw_feature_bc_matrix.h5")
    assay = read_visium(outs)
    assert_known(assay, known, 0.5)
    assert any("filtered_feature_bc_matrix is absent" in note for note in assay.notes)


@pytest.mark.parametrize(
    ("name", "image_scale", "scale"),
    [
        ("slide.tif", None, 1.0),
        ("A1_tissue_lowres_image.png", None, 0.1),
        ("slide.tif", 0.25, 0.25),
        ("tissue_hires_image.png", 2.0, 2.0),
    ],
)
def test_a_given_image_decides_the_frame(outs, known, write, tmp_path, name, image_scale, scale):
    """Full resolution unless its name or the caller says otherwise; positions, diameter and mpp follow together."""
    image = write.image(tmp_path / "given" / name)
    assay = read_visium(outs, image=image, image_scale=image_scale)
    assert_known(assay, known, scale)
    np.testing.assert_allclose(assay.spots["diameter_px0"], 27.5 * scale)
    assert assay.mpp == pytest.approx(MPP_FULLRES / scale)
    assert assay.image == image


def test_the_lowres_image_is_taken_where_hires_is_absent(outs, known):
    """Only the low-resolution image survives."""
    (outs / "spatial" / "tissue_hires_image.png").unlink()
    assert_known(read_visium(outs), known, 0.1)


def test_microns_per_pixel_wins_over_the_array(outs):
    """What the file says is taken, scaled to the image."""
    change_factors(outs, microns_per_pixel=1.9)
    assay = read_visium(outs)
    assert assay.mpp == pytest.approx(1.9 / 0.5)
    assert any("from microns_per_pixel of scalefactors_json.json" in note for note in assay.notes)


def test_mpp_is_unknown_with_fewer_than_three_positions_off_a_line(outs, known, write):
    """One row of the array does not tell the um per px, and the diameter is said to be unknown in um."""
    table = write.positions(known).assign(array_row=0)
    table.to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    assay = read_visium(outs)
    assert assay.mpp is None
    assert any(note.startswith("mpp unknown: tissue_positions.csv") for note in assay.notes)
    assert any("unknown um" in note for note in assay.notes)


def test_positions_that_miss_the_array_are_refused(outs, known, write):
    """Shuffled array coordinates are a fault, until the file says the um per px itself."""
    table = write.positions(known)
    order = np.random.default_rng(0).permutation(12)
    table[["array_row", "array_col"]] = table[["array_row", "array_col"]].to_numpy()[order]
    table.to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    with pytest.raises(AssayError, match=r"miss the array of 100 um pitch by .* as microns_per_pixel into"):
        read_visium(outs)
    change_factors(outs, microns_per_pixel=2.0)
    assert read_visium(outs).mpp == pytest.approx(4.0)


@pytest.fixture
def bins(tmp_path, known, write):
    """A folder of 8 um bins of Visium HD: a 4 x 3 grid at 0.5 um per px, positions as parquet."""
    folder = tmp_path / "outs" / "binned_outputs" / "square_008um"
    (folder / "spatial").mkdir(parents=True)
    table = write.positions(known).iloc[::-1]
    row, col = np.divmod(np.arange(12), 4)
    table = table.assign(
        array_row=row, array_col=col, pxl_row_in_fullres=row * 16.0 + 8.0, pxl_col_in_fullres=col * 16.0 + 8.0
    )
    table.to_parquet(folder / "spatial" / "tissue_positions.parquet", index=False)
    factors = {"spot_diameter_fullres": 16.1, "bin_size_um": 8.0, "microns_per_pixel": 0.5, "tissue_hires_scalef": 0.2}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    write.v3(folder / "filtered_feature_bc_matrix.h5", known)
    write.image(folder / "spatial" / "tissue_hires_image.png")
    return folder


def test_visium_hd_bins_are_squares_as_wide_as_a_bin(bins, known):
    """The side is the bin size over the mpp, at the scale of the image."""
    assay = read_visium(bins)
    assert assay.shape == "square"
    np.testing.assert_allclose(assay.spots["diameter_px0"], 8.0 / 0.5 * 0.2)
    np.testing.assert_allclose(assay.spots["x_px0"], (np.arange(12) % 4 * 16.0 + 8.0)[known.under_tissue] * 0.2)
    np.testing.assert_array_equal(assay.counts.toarray(), known.counts[known.under_tissue])
    assert assay.mpp == pytest.approx(0.5 / 0.2)


def test_visium_hd_without_microns_per_pixel_uses_its_square_grid(bins):
    """Steps of both axes are one bin."""
    path = bins / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({"bin_size_um": 8.0, "tissue_hires_scalef": 0.2}))
    assay = read_visium(bins)
    assert assay.mpp == pytest.approx(0.5 / 0.2)
    np.testing.assert_allclose(assay.spots["diameter_px0"], 16.0 * 0.2)


def test_bins_of_unknown_width_are_refused(bins):
    """One row of bins without spot_diameter_fullres leaves the width in px open; with it the file's is taken."""
    table = pd.read_parquet(bins / "spatial" / "tissue_positions.parquet").assign(array_row=0)
    table.to_parquet(bins / "spatial" / "tissue_positions.parquet", index=False)
    path = bins / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({"bin_size_um": 8.0, "tissue_hires_scalef": 0.2}))
    with pytest.raises(AssayError, match="spot_diameter_fullres or microns_per_pixel beside bin_size_um"):
        read_visium(bins)
    path.write_text(json.dumps({"bin_size_um": 8.0, "tissue_hires_scalef": 0.2, "spot_diameter_fullres": 16.1}))
    np.testing.assert_allclose(read_visium(bins).spots["diameter_px0"], 16.1 * 0.2)


def test_the_folder_above_the_bins_is_refused_with_the_choices(bins):
    """Which bin size to read is the user's choice."""
    with pytest.raises(AssayError, match=r"pass one of binned_outputs/: square_008um"):
        read_visium(bins.parent.parent)


def test_all_missing_files_are_named_at_once(tmp_path):
    """An empty folder lacks counts, positions, scale factors and image."""
    with pytest.raises(AssayError, match=r"no counts: .* no positions: .* no scale factors: .* no image: .*--image"):
        read_visium(tmp_path)


def test_a_path_that_is_no_folder_is_refused(outs):
    """The `.h5` file alone lacks the positions."""
    with pytest.raises(AssayError, match="must be a folder, the outs/ of Space Ranger"):
        read_visium(outs / "filtered_feature_bc_matrix.h5")


def test_an_image_that_does_not_exist_is_refused(outs):
    """A wrong path is said before anything is read."""
    with pytest.raises(SlideError, match=r"nothing\.svs does not exist"):
        read_visium(outs, image=outs / "nothing.svs")


def test_faults_of_barcodes_are_listed_together(outs, known, write):
    """Repeated barcodes and barcodes without position stand in one message, with examples of both tables."""
    strange = ["ACGT-9", "ACGT-9", *known.barcodes[2:]]
    write.v3(outs / "filtered_feature_bc_matrix.h5", known._replace(barcodes=strange))
    with pytest.raises(
        AssayError,
        match=r"1 barcodes of filtered\S+ are repeated: ACGT-9; 2 of 12 barcodes .* \(its barcodes: [ACGT]+-1,",
    ):
        read_visium(outs)


def test_positions_without_counts_are_dropped_and_noted(outs, known, write):
    """A spot under tissue that the counts lack is no fault."""
    write.v3(
        outs / "filtered_feature_bc_matrix.h5",
        known._replace(barcodes=known.barcodes[1:]),
        counts=known.counts[1:],
    )
    assay = read_visium(outs)
    assert assay.spots.index.tolist() == [known.barcodes[i] for i in known.under_tissue[1:]]
    assert "1 positions under tissue have no counts and were dropped" in assay.notes


def test_counts_of_tissue_only_need_no_note(outs, known, write):
    """Filtered counts as Space Ranger writes them drop nothing."""
    kept = known.under_tissue
    cut = known._replace(counts=known.counts[kept], barcodes=[known.barcodes[i] for i in kept])
    write.v3(outs / "filtered_feature_bc_matrix.h5", cut)
    assay = read_visium(outs)
    assert_known(assay, known, 0.5)
    assert not any("left out" in note or "dropped" in note for note in assay.notes)


def test_no_spot_under_tissue_is_refused(outs, known, write):
    """An assay without spots is a fault of the positions."""
    write.positions(known).assign(in_tissue=0).to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    with pytest.raises(AssayError, match="puts none of the 12 spots under tissue"):
        read_visium(outs)


def test_all_faults_of_the_positions_are_listed(outs, known, write):
    """Repeats, flags, fractions and words stand in one message with their barcodes."""
    table = write.positions(known).astype(object).reset_index(drop=True)
    table.loc[0, "barcode"] = table.loc[1, "barcode"]
    table.loc[2, "in_tissue"] = 2
    table.loc[3, "array_row"] = 0.5
    table.loc[4, "pxl_col_in_fullres"] = "here"
    table.to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    with pytest.raises(
        AssayError,
        match=r"1 barcodes are repeated: .*in_tissue must be 0 or 1.*array_row must be .*pxl_col\S+ must be finite",
    ):
        read_visium(outs)


@pytest.mark.parametrize("header", [True, False])
def test_positions_with_other_columns_are_refused(outs, known, write, header):
    """A table of five columns is no positions table, with or without header."""
    table = write.positions(known).drop(columns="in_tissue")
    table.to_csv(outs / "spatial" / "tissue_positions.csv", index=False, header=header)
    with pytest.raises(AssayError, match=r"must hold the columns barcode, .* in_tissue.* missing; copy the file"):
        read_visium(outs)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tissue_positions.parquet", b"PAR1 and no more"),
        ("tissue_positions.csv", b""),
        ("tissue_positions.csv", b"\xff\xfe\x00bad,\x01"),
        ("tissue_positions.csv", b"a,b\n1,2,3,4\n"),
        ("scalefactors_json.json", b'{"spot_diameter_fullres": 1'),
    ],
)
def test_corrupt_files_are_named(outs, name, content):
    """Every corrupt file is refused by name with the next step."""
    (outs / "spatial" / name).write_bytes(content)
    with pytest.raises(AssayError, match=rf"{name} cannot be read as .*; copy or download the file again"):
        read_visium(outs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"spot_diameter_fullres": None},
            "must hold spot_diameter_fullres, got tissue_hires_scalef, tissue_lowres_scalef",
        ),
        ({"spot_diameter_fullres": -1}, "spot_diameter_fullres must be a positive number, got -1"),
        ({"tissue_hires_scalef": "x"}, "tissue_hires_scalef must be a positive number, got 'x'"),
        ({"tissue_hires_scalef": None}, "needs the scale factor tissue_hires_scalef, known are: .*pass --image-scale"),
    ],
)
def test_faulty_scale_factors_are_refused(outs, changes, said):
    """A missing or impossible factor is named with its value."""
    change_factors(outs, **changes)
    with pytest.raises(AssayError, match=said):
        read_visium(outs)


def test_scale_factors_that_are_no_object_are_refused(outs):
    """A list is no scale factors."""
    (outs / "spatial" / "scalefactors_json.json").write_text("[1, 2]")
    with pytest.raises(AssayError, match="must hold a json object of scale factors, got a list"):
        read_visium(outs)


def test_the_breast_cancer_section(shared_data):
    """A real window of Visium: its size, total, mpp and frame are known."""
    assay = read_visium(shared_data / "visium_brca" / "outs")
    assert assay.counts.shape == (709, 18085)
    assert assay.counts.sum() == 11840246
    assert assay.mpp == pytest.approx(1.6)
    assert assay.spots.loc["TCTTAGATGCCTCCGA-1", "y_px0"] == pytest.approx(110.08203321590327)
    assert assay.spots.loc["TCTTAGATGCCTCCGA-1", "x_px0"] == pytest.approx(110.13176369484586)
    np.testing.assert_allclose(assay.spots["diameter_px0"], 34.375)


def test_the_pitch_of_the_breast_cancer_section_agrees_with_its_file(shared_data, tmp_path):
    """Without microns_per_pixel the array gives the same um per px."""
    outs = tmp_path / "outs"
    shutil.copytree(shared_data / "visium_brca" / "outs", outs)
    (outs / "spatial" / "scalefactors_json.json").chmod(0o644)
    change_factors(outs, microns_per_pixel=None)
    assert read_visium(outs).mpp == pytest.approx(1.6, rel=1e-6)


def test_the_cytassist_embryo_on_its_lowres_image(shared_data):
    """A real mtx folder: size, and positions scaled to the 600 px image."""
    assay = read_visium(shared_data / "visium_formats" / "cytassist_mtx")
    assert assay.counts.shape == (2898, 19465)
    assert assay.counts.sum() == 3085005
    assert assay.image.name == "tissue_lowres_image.png"
    assert assay.mpp == pytest.approx(4.6669 / 0.2, rel=1e-4)
    assert assay.spots[["x_px0", "y_px0"]].to_numpy().max() < 600
    np.testing.assert_allclose(assay.spots["diameter_px0"], 14.964878633873417 * 0.2)
    assert assay.genes.index.is_unique


def test_a_spatial_folder_alone_lacks_counts(shared_data):
    """Positions of Space Ranger 1 without counts are refused for the counts only."""
    with pytest.raises(AssayError, match=r"v1_positions: no counts: .* is missing; pass the whole outs/ folder"):
        read_visium(shared_data / "visium_formats" / "v1_positions")


def test_the_positions_of_space_ranger_1_give_their_mpp(shared_data, tmp_path, write):
    """The headerless list of a real section fits the array; one spot of counts is enough to read it."""
    folder = tmp_path / "outs"
    shutil.copytree(shared_data / "visium_formats" / "v1_positions", folder)
    listed = pd.read_csv(folder / "tissue_positions_list.csv", header=None)
    barcode, *_, y_px, x_px = listed[listed[1] == 1].iloc[0]
    files = folder / "filtered_feature_bc_matrix"
    files.mkdir()
    (files / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n1 1 1\n1 1 4\n")
    (files / "barcodes.tsv").write_text(f"{barcode}\n")
    (files / "genes.tsv").write_text("ENSG1\tA\n")
    assay = read_visium(folder)
    assert assay.mpp == pytest.approx(0.7585 / 0.17479461, rel=1e-3)
    assert assay.spots["x_px0"].item() == pytest.approx(x_px * 0.17479461)
    assert assay.spots["y_px0"].item() == pytest.approx(y_px * 0.17479461)
    assert "1606 positions under tissue have no counts and were dropped" in assay.notes
