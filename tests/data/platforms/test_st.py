"""Tables of the ST pipeline give the known spots by spot table and by matrix, and ambiguous ones are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from superst_monai.data.platforms.st import read_st
from superst_monai.errors import AssayError, SlideError

PITCH_PX = 250.0  # one array unit in the image: 0.8 um per px
OFFSET = np.array([-100.0, 30.0])
HEADER = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
ARRAY = np.stack(np.meshgrid([2, 3, 4], [5, 6, 7, 8], indexing="ij"), axis=-1).reshape(-1, 2)


@pytest.fixture
def counts():
    """Counts of 12 spots x 5 genes, spots named by their array coordinates."""
    names = [f"{x}x{y}" for x, y in ARRAY]
    values = np.random.default_rng(0).poisson(2.0, (12, 5))
    return pd.DataFrame(values, index=names, columns=["ACTB", "NA", "GAPDH", "ACTB", "XIST"])


@pytest.fixture
def table():
    """The spot table of the same spots in another order, adjusted by a few hundredths of the pitch."""
    shift = np.round(np.random.default_rng(1).uniform(-0.05, 0.05, ARRAY.shape), 2)
    rows = np.column_stack([ARRAY, ARRAY + shift, (ARRAY + shift) * PITCH_PX + OFFSET, np.ones(12)])
    frame = pd.DataFrame(rows, columns=HEADER).iloc[::-1].reset_index(drop=True)
    return frame.astype({"x": int, "y": int, "selected": int})


@pytest.fixture
def section(tmp_path, counts, table, write):
    """The three files of a section; returns a reader that rewrites what it is given."""
    write.image(tmp_path / "a.png")
    write.text(tmp_path / "c.tsv.gz", counts.to_csv(sep="\t"))
    write.text(tmp_path / "s.tsv", table.to_csv(sep="\t", index=False))

    def read(counts=None, spots=None, transform=None, **options):
        if counts is not None:
            write.text(tmp_path / "c.tsv.gz", counts)
        if spots is not None:
            write.text(tmp_path / "s.tsv", spots)
        if transform is not None:
            write.text(tmp_path / "t.txt", transform)
        way = {"spots": tmp_path / "s.tsv"} if transform is None else {"transform": tmp_path / "t.txt"}
        return read_st(tmp_path / "c.tsv.gz", image=tmp_path / "a.png", **(way | options))

    return read


def assert_known(assay, counts, table):
    """Spots in the order of the counts, at the pixels of the table."""
    np.testing.assert_array_equal(assay.counts.toarray(), counts.to_numpy())
    assert assay.spots.index.tolist() == counts.index.tolist()
    pixels = table.set_index(["x", "y"]).loc[[tuple(xy) for xy in ARRAY], ["pixel_x", "pixel_y"]].to_numpy()
    np.testing.assert_allclose(assay.spots[["x_px0", "y_px0"]], pixels)
    np.testing.assert_array_equal(assay.spots[["array_x", "array_y"]], ARRAY)
    assert assay.genes.index.tolist() == ["ACTB", "NA", "GAPDH", "ACTB-1", "XIST"]
    assert assay.genes["gene_id"].tolist() == ["ACTB", "NA", "GAPDH", "ACTB", "XIST"]
    assert (assay.platform, assay.shape) == ("st", "circle")


def test_counts_and_spot_table_give_the_known_spots(section, counts, table, tmp_path):
    """Positions, mpp and diameter follow from table and pitch, with a note of each decision."""
    assay = section()
    assert_known(assay, counts, table)
    assert assay.mpp == pytest.approx(200.0 / PITCH_PX, rel=0.02)
    np.testing.assert_allclose(assay.spots["diameter_px0"], 100.0 / assay.mpp)
    assert assay.image == tmp_path / "a.png"
    said = "\n".join(assay.notes)
    assert "counts read from c.tsv.gz" in said
    assert "positions read from s.tsv" in said
    assert "um/px from the array's pitch of 200 um" in said
    assert f"spots are 100 um = {100 / assay.mpp:.4g} px wide" in said


def test_pitch_and_diameter_are_options(section):
    """Twice the pitch is twice the um per px; the diameter in px follows both."""
    once, twice = section(), section(pitch_um=400.0, spot_diameter_um=50.0)
    assert twice.mpp == pytest.approx(2 * once.mpp)
    np.testing.assert_allclose(twice.spots["diameter_px0"], once.spots["diameter_px0"] / 4)


def test_genes_by_spots_are_transposed(section, counts, table):
    """The other orientation gives the same assay, with a note."""
    assay = section(counts=counts.T.to_csv(sep="\t"))
    assert_known(assay, counts, table)
    assert "counts read from c.tsv.gz, genes x spots, transposed" in assay.notes


def test_a_header_without_corner_cell_and_quotes_are_read(section, counts, table):
    """Tables as R writes them have one name fewer and quoted names."""
    text = counts.to_csv(sep="\t", quoting=2)
    assert_known(section(counts=text.removeprefix('""\t')), counts, table)


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        (HEADER, True),
        (HEADER, False),
        (HEADER[:6], True),
        (HEADER[:6], False),
        (["x", "y", "pixel_x", "pixel_y"], True),
        (["x", "y", "pixel_x", "pixel_y"], False),
        (["pixel_y", "selected", "y", "pixel_x", "x"], True),
    ],
)
@pytest.mark.parametrize("separator", ["\t", ",", " "])
def test_every_form_of_the_spot_table_gives_the_same_spots(section, counts, table, columns, header, separator):
    """With header in any order, without header in the documented orders."""
    assert_known(section(spots=table[columns].to_csv(sep=separator, index=False, header=header)), counts, table)


def test_a_spot_table_with_names_of_rows_is_read(section, counts, table):
    """A first column without name holds the spots' names, as R writes it."""
    text = table.set_index(pd.Index([f"{x}x{y}" for x, y in table[["x", "y"]].to_numpy()])).to_csv(sep=" ")
    assert_known(section(spots=text.lstrip()), counts, table)


@pytest.mark.parametrize("flag", ["selected", "under_tissue", "in_tissue"])
def test_spots_that_are_not_selected_are_left_out(section, counts, table, flag):
    """A 0 under any of its names leaves the spot out, with a note."""
    assay = section(
        spots=table.assign(selected=[0, 0, *[1] * 10]).rename(columns={"selected": flag}).to_csv(index=False)
    )
    np.testing.assert_array_equal(assay.counts.toarray(), counts.to_numpy()[:10])
    assert "2 of 12 spots with counts are not selected (not under tissue) and were left out" in assay.notes


def test_spots_of_one_table_only_are_dropped_and_noted(section, counts, table):
    """Both sides are counted and the spots in common stay."""
    assay = section(counts=counts.iloc[2:].to_csv(sep="\t"), spots=table.iloc[1:].to_csv(index=False))
    np.testing.assert_array_equal(assay.counts.toarray(), counts.to_numpy()[2:11])
    assert "1 of 10 spots with counts have no position and were dropped: 4x8" in assay.notes
    assert "2 of 11 positions have no counts and were dropped: 2x6, 2x5" in assay.notes


def test_adjusted_names_are_matched_by_new_coordinates(section, counts, table):
    """Names such as `2.03x4.96` are those of new_x and new_y; without these columns the nearest whole one is meant."""
    lookup = table.set_index(["x", "y"])
    named = counts.set_axis(
        [f"{a:.2f}x{b:.2f}" for a, b in lookup.loc[[tuple(i) for i in ARRAY], ["new_x", "new_y"]].to_numpy()]
    )
    assert_known(section(counts=named.to_csv(sep="\t")), named, table)
    short = table[["x", "y", "pixel_x", "pixel_y"]].to_csv(index=False)
    assert_known(section(counts=named.to_csv(sep="\t"), spots=short), named, table)


def test_two_spots_on_one_row_are_refused(section, counts, table):
    """Names that round to the same spot are ambiguous."""
    named = counts.set_axis(["2.1x5.0", "2.0x5.1", *counts.index[2:]])
    with pytest.raises(AssayError, match="rows that fit several spots with counts: 2x5"):
        section(counts=named.to_csv(sep="\t"), spots=table[["x", "y", "pixel_x", "pixel_y"]].to_csv(index=False))


def test_tables_of_different_sections_are_refused(section, counts):
    """Nothing in common shows names of both."""
    with pytest.raises(
        AssayError, match=r"4x8, 4x7, 4x6 \.\.\. \(12\)\) is among the 12 spots with counts \(2x55, 2x65"
    ):
        section(counts=counts.set_axis([f"{name}5" for name in counts.index]).to_csv(sep="\t"))


def test_nothing_selected_is_refused(section, table):
    """A table that selects no spot is a fault."""
    with pytest.raises(AssayError, match="selects none of the 12 spots with counts"):
        section(spots=table.assign(selected=0).to_csv(index=False))


def test_spots_on_a_line_are_refused(section, table):
    """One row of the array does not tell the um per px, which the diameter needs."""
    with pytest.raises(AssayError, match="must hold three spots off one line"):
        section(spots=table[table["x"] == 2].to_csv(index=False))


def test_pixels_of_another_array_are_refused(section, table):
    """Pixels that no affine map gives are a fault."""
    shuffled = table.assign(pixel_x=np.random.default_rng(0).permutation(table["pixel_x"]))
    with pytest.raises(AssayError, match="positions miss the array of 200 um pitch"):
        section(spots=shuffled.to_csv(index=False))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x y new_x new_y\n1 2 1.1 2.1\n", "pixel_x, pixel_y missing .it has x, y, new_x, new_y.; pass the full table"),
        ("1 2 1.1 2.1\n3 5 3.1 5.1\n", "repeat the array coordinates .x y new_x new_y., pixels are missing"),
        ("1 2 4 9\n3 5 9 14\n", "spread over 2 px per array unit, too few"),
        ("1 2 100 200 1\n", "no header and 5 columns, must have 4, 6 or 7; add the header"),
        ("x y pixel_x\n1 2 3 4 5\n", "one distinct name for each of its 5 columns, got x, y, pixel_x"),
        ("x y pixel_x pixel_x\n1 2 3 4\n", "one distinct name for each of its 4 columns"),
        (
            "x y pixel_x pixel_y\n1 2 a 4\n1 2 3 inf\n",
            "pixel_x must be a finite number, is not in data row 1; pixel_y .*row 2; 1 spots are repeated: 1x2",
        ),
        ("1 2 a 4\n1 3 7 8\n", "one distinct name|must hold the columns"),
        ("1 2 3 4\n1 3 a 8\n", "pixel_x must be a finite number, is not in data row 2"),
        ("x y pixel_x pixel_y selected\n1 2 3 4 7\n", "selected must be 0 or 1, is 7.0"),
        ("", "cannot be read as spot table"),
        ("x y pixel_x pixel_y\n1 2 3 4\n1 2 3 4 5\n", "cannot be read as spot table"),
    ],
)
def test_faulty_and_ambiguous_spot_tables_are_refused(section, text, said):
    """What cannot be read in one way only is not read."""
    with pytest.raises(AssayError, match=said):
        section(spots=text)


LINEAR = np.array([[240.0, 20.0], [-20.0, 240.0]])  # row vectors: [x y] @ LINEAR
ROW_FORM = np.column_stack([np.vstack([LINEAR, OFFSET]), [0, 0, 1]])


@pytest.mark.parametrize("matrix", [ROW_FORM, ROW_FORM.T])
@pytest.mark.parametrize("separator", [" ", ",", "\n"])
def test_a_matrix_of_either_convention_gives_the_same_pixels(section, counts, matrix, separator):
    """Where the zeros and the one lie says how it is to be read."""
    assay = section(transform=separator.join(map(str, matrix.ravel())))
    np.testing.assert_allclose(assay.spots[["x_px0", "y_px0"]], ARRAY @ LINEAR + OFFSET)
    np.testing.assert_array_equal(assay.counts.toarray(), counts.to_numpy())
    assert assay.mpp == pytest.approx(200.0 / np.hypot(240, 20))
    np.testing.assert_allclose(assay.spots["diameter_px0"], 100.0 / assay.mpp)
    assert "positions by the matrix of t.txt, all spots with counts kept" in assay.notes


def test_a_matrix_without_translation_and_turn_is_read(section):
    """Where both conventions agree there is no ambiguity."""
    assay = section(transform="200 0 0 0 200 0 0 0 1")
    np.testing.assert_allclose(assay.spots[["x_px0", "y_px0"]], ARRAY * 200.0)
    assert assay.mpp == pytest.approx(1.0)


def test_adjusted_names_go_into_the_matrix_as_they_are(section, counts):
    """A name with decimals is placed between the whole spots."""
    named = counts.set_axis([f"{x}.25x{y}.5" for x, y in ARRAY])
    assay = section(counts=named.to_csv(sep="\t"), transform="200 0 0 0 200 0 0 0 1")
    np.testing.assert_allclose(assay.spots[["x_px0", "y_px0"]], (ARRAY + np.array([0.25, 0.5])) * 200.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("200 20 0 -20 200 0 0 0 1", "no translation and 20, -20 off the diagonal, which fits both"),
        ("200 0 1 0 200 2 3 4 1", "must be affine, with a last column or a last row 0 0 1"),
        ("200 0 0 0 200 0 5 5", "must hold nine finite numbers, got 8"),
        ("200 0 0 0 nan 0 5 5 1", "must hold nine finite numbers, got 9"),
        ("a 0 0 0 200 0 5 5 1", "cannot be read as 3x3 matrix .*; give nine numbers"),
        ("1 0 0 0 1 0 0 0 1", "puts neighbouring spots 1 px apart, must be 2 px at least"),
        ("200 0 0 0 0 0 5 5 1", "puts neighbouring spots 0 px apart"),
        ("200 0 0 0 300 0 5 5 1", "axes of the array differ 1.50-fold"),
    ],
)
def test_faulty_matrices_are_refused(section, text, said):
    """Nine numbers that are no map from array to pixels are named."""
    with pytest.raises(AssayError, match=said):
        section(transform=text)


@pytest.mark.parametrize("way", [(), ("spots", "transform")])
@pytest.mark.usefixtures("section")
def test_exactly_one_way_to_pixels_must_be_given(tmp_path, way):
    """Neither and both are refused."""
    with pytest.raises(AssayError, match="needs its pixel positions from exactly one of spots and transform"):
        read_st(tmp_path / "c.tsv.gz", image=tmp_path / "a.png", **dict.fromkeys(way, tmp_path / "s.tsv"))


def test_an_image_that_does_not_exist_is_refused(tmp_path):
    """A wrong path is said before anything is read."""
    with pytest.raises(SlideError, match=r"no\.jpg does not exist"):
        read_st(tmp_path / "c.tsv", image=tmp_path / "no.jpg")


@pytest.mark.parametrize("option", ["spot_diameter_um", "pitch_um"])
def test_impossible_lengths_are_refused(section, option):
    """Diameter and pitch are positive."""
    with pytest.raises(AssayError, match=f"{option} must be a positive number, got 0"):
        section(**{option: 0.0})


def test_normalised_counts_are_refused(section, counts):
    """The first fraction is named by spot and gene."""
    with pytest.raises(AssayError, match=r"not integers \(first .* at spot '2x5', gene 'ACTB'\).*looks log-normalised"):
        section(counts=np.log1p(counts).to_csv(sep="\t"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\tA\tB\n1x2\t1\t2\nspot\t3\t4\n", r"in every row, 1 of 2 are not: spot; pass a table of spots x genes"),
        ("\t1x2\tB\nA\t1\t2\nB\t3\t4\n", r"in every column, 1 of 2 are not: B"),
        ("\tA\tB\n1x2\t1\t2\n1x2\t3\t4\n", "1 spots are repeated: 1x2; keep one row of each spot"),
        ("\tA\tB\n1x2\t1\tyes\n1x3\t3\t4\n", "got text in 1 of 2 columns .first 'yes' in row '1x2', column 'B'."),
        ("\tA\tB\n1x2\t1\t2\n1x3\t3\n", "1 of 4 stored values are not finite .first nan at spot '1x3', gene 'B'."),
        (
            "\tA\tB\tC\tD\n1x2\t1\t2\n",
            "must have a header of 2 names .or one more for the corner. as its rows do, got 5",
        ),
        ("\tA\tB\n", "cannot be read as tab-separated counts"),
        ("\tA\tB\n1x2\t1\t2\n1x3\t1\t2\t3\n", "cannot be read as tab-separated counts"),
    ],
)
def test_faulty_counts_tables_are_refused(section, text, said):
    """Names, text, missing cells and rows of other lengths are named."""
    with pytest.raises(AssayError, match=said):
        section(counts=text)


def test_a_truncated_gz_is_named(section, tmp_path):
    """The end of the file is missing."""
    path = tmp_path / "c.tsv.gz"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AssayError, match=r"c\.tsv\.gz cannot be read as tab-separated counts .*copy or download"):
        section()


@pytest.mark.parametrize(
    ("name", "n_spots", "n_genes", "total", "dropped"),
    [
        ("C2", 187, 15706, 1926633, None),
        ("C3", 180, 15821, 2033498, "2 of 182"),
        ("C6", 178, 15772, 2256695, "1 of 179"),
    ],
)
def test_the_breast_tumour_sections(shared_data, name, n_spots, n_genes, total, dropped):
    """Real ST sections: size, total, spots of one table only, and the um per px that all their spots imply."""
    folder = shared_data / "her2st"
    assay = read_st(folder / f"{name}.tsv.gz", image=folder / f"{name}.jpg", spots=folder / f"{name}_selection.tsv")
    assert assay.counts.shape == (n_spots, n_genes)
    assert assay.counts.sum() == total
    assert any(f"{dropped} positions have no counts" in note for note in assay.notes) == (dropped is not None)
    table = pd.read_csv(folder / f"{name}_selection.tsv", sep="\t")
    slopes = [np.polyfit(table[f"new_{axis}"], table[f"pixel_{axis}"], 1)[0] for axis in "xy"]
    assert assay.mpp == pytest.approx(200.0 / np.sqrt(np.prod(slopes)), rel=0.005)
    assert assay.mpp == pytest.approx(0.688, abs=0.003)
