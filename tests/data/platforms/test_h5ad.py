"""AnnData files give the known spots in px of the chosen image, and what they leave open is asked for."""

from __future__ import annotations

import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy import sparse

from superst_monai.data.platforms.h5ad import read_h5ad
from superst_monai.errors import AssayError, SlideError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def library(**factors):
    """Content of `uns["spatial"]` with one library; None leaves a factor out."""
    numbers = {"spot_diameter_fullres": 27.5, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1} | factors
    kept = {key: value for key, value in numbers.items() if value is not None}
    return {"A1": {"images": {"hires": IMAGE, "lowres": IMAGE[:3]}, "scalefactors": kept}}


@pytest.fixture
def save(known, tmp_path):
    """A writer of the known section as AnnData; arguments replace its parts."""

    def write(x=None, spatial=None, obs=None, uns=None, var=None, layers=None, raw=None, obsm=None):
        table = pd.DataFrame({"in_tissue": known.in_tissue, "patient": "P1"}, index=known.barcodes)
        genes = pd.DataFrame({"gene_ids": known.ids}, index=known.genes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated names are what is tested
            data = anndata.AnnData(
                sparse.csr_matrix(known.counts.astype(np.float32)) if x is None else x,
                obs=table if obs is None else obs,
                var=genes if var is None else var,
                uns={"spatial": library()} if uns is None else uns,
                layers=layers,
            )
            data.obsm["spatial" if obsm is None else obsm] = (
                np.column_stack([known.x_fullres, known.y_fullres]) if spatial is None else spatial
            )
            if raw is not None:
                data.raw = raw
            data.write_h5ad(tmp_path / "a.h5ad")
        return tmp_path / "a.h5ad"

    return write


def assert_known(assay, known, scale):
    """The spots under tissue at `scale`, with counts, genes and the other columns of obs."""
    kept = known.under_tissue
    np.testing.assert_array_equal(assay.counts.toarray(), known.counts[kept])
    assert assay.spots.index.tolist() == [known.barcodes[i] for i in kept]
    np.testing.assert_allclose(assay.spots["x_px0"], known.x_fullres[kept] * scale)
    np.testing.assert_allclose(assay.spots["y_px0"], known.y_fullres[kept] * scale)
    assert assay.genes.index.tolist() == ["ACTB", "TBCE", "GAPDH", "TBCE-1", "XIST"]
    assert assay.genes["gene_id"].tolist() == known.ids
    assert set(assay.spots["patient"]) == {"P1"}
    assert "in_tissue" not in assay.spots
    assert assay.platform == "h5ad"


def test_the_hires_image_of_the_file_decides_the_frame(save, known):
    """Without a slide the file's own image is taken, with its factor on positions and diameter."""
    assay = read_h5ad(save())
    assert_known(assay, known, 0.5)
    np.testing.assert_array_equal(assay.image, IMAGE)
    np.testing.assert_allclose(assay.spots["diameter_px0"], 27.5 * 0.5)
    assert assay.mpp is None
    assert assay.shape == "circle"
    assert assay.scale_factors == {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}
    said = "\n".join(assay.notes)
    assert "counts read from X" in said
    assert "multiplied by 0.5 (tissue_hires_scalef) to fit image tissue_hires_image of a.h5ad" in said
    assert "2 of 12 spots are not under tissue" in said
    assert "13.75 px wide by spot_diameter_fullres" in said


def test_the_lowres_image_is_taken_where_hires_is_absent(save, known):
    """The next image brings its own factor."""
    uns = library()
    del uns["A1"]["images"]["hires"]
    assay = read_h5ad(save(uns={"spatial": uns}))
    assert_known(assay, known, 0.1)
    np.testing.assert_array_equal(assay.image, IMAGE[:3])


@pytest.mark.parametrize(
    ("name", "image_scale", "scale"),
    [("slide.png", None, 1.0), ("tissue_lowres_image.png", None, 0.1), ("slide.png", 0.3, 0.3)],
)
def test_a_given_image_decides_the_frame(save, known, write, tmp_path, name, image_scale, scale):
    """Full resolution unless its name or the caller says otherwise."""
    image = write.image(tmp_path / name)
    assay = read_h5ad(save(), image=image, image_scale=image_scale)
    assert_known(assay, known, scale)
    assert assay.image == image
    np.testing.assert_allclose(assay.spots["diameter_px0"], 27.5 * scale)


def test_uns_without_a_library_level_is_read(save, known):
    """Images and scale factors may lie directly in uns["spatial"]."""
    assert_known(read_h5ad(save(uns={"spatial": library()["A1"]})), known, 0.5)


def test_several_libraries_are_refused_by_name(save):
    """A file of several sections cannot be one assay."""
    uns = {"spatial": library() | {"B1": library()["A1"]}}
    with pytest.raises(AssayError, match=r"must hold one section, uns\['spatial'\] has the libraries A1, B1"):
        read_h5ad(save(uns=uns))


@pytest.mark.parametrize(
    ("image", "truth"),
    [
        (IMAGE.astype(np.float32) / 255, IMAGE),
        (IMAGE / 255, IMAGE),
        (np.dstack([IMAGE, np.full((6, 5), 255, np.uint8)]), IMAGE),
        (np.dstack([IMAGE, np.zeros((6, 5), np.uint8)]), np.full_like(IMAGE, 255)),
    ],
)
def test_images_become_uint8_on_white(save, image, truth):
    """Floats are scaled, transparent pixels become white."""
    uns = library()
    uns["A1"]["images"]["hires"] = image
    got = read_h5ad(save(uns={"spatial": uns})).image
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, truth)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (IMAGE[..., 0], r"must be \(H, W, 3\), got \(6, 5\)"),
        (IMAGE.astype(np.float32), r"must be uint8 or floats in \[0, 1\], got float32 in \["),
        (IMAGE.astype(np.int32), r"must be uint8 or floats in \[0, 1\], got int32"),
    ],
)
def test_other_images_are_refused(save, image, said):
    """Grey images and other ranges are not guessed at."""
    uns = library()
    uns["A1"]["images"]["hires"] = image
    with pytest.raises(AssayError, match=said):
        read_h5ad(save(uns={"spatial": uns}))


@pytest.mark.parametrize("uns", [{}, {"spatial": "none"}, {"spatial": {"A1": {"images": "none"}}}])
def test_a_file_without_image_asks_for_the_slide(save, uns):
    """Nothing to draw on is a fault with the option that mends it."""
    with pytest.raises(
        AssayError, match=r"holds no image in uns\['spatial'\] \(nothing\); pass the slide with --image"
    ):
        read_h5ad(save(uns=uns))


def test_a_given_diameter_is_converted_by_the_given_mpp(save, write, tmp_path):
    """um over um per px, before what the file says."""
    assay = read_h5ad(save(), image=write.image(tmp_path / "a.png"), spot_diameter_um=100.0, slide_mpp=4.0)
    np.testing.assert_allclose(assay.spots["diameter_px0"], 25.0)
    assert "spots are 100 um (given) = 25 px wide" in assay.notes


def test_a_given_diameter_without_mpp_asks_for_it(save, write, tmp_path):
    """um cannot be drawn without um per px."""
    with pytest.raises(
        AssayError, match=r"does not say the um per px, which a spot diameter of 100 um needs; pass --slide-mpp"
    ):
        read_h5ad(save(uns={}), image=write.image(tmp_path / "a.png"), spot_diameter_um=100.0)


def test_an_unknown_diameter_asks_for_it(save, write, tmp_path):
    """A file that does not say how wide its spots are needs the option."""
    with pytest.raises(AssayError, match=r"lacks spot_diameter_fullres\); pass --spot-diameter-um"):
        read_h5ad(save(uns={}), image=write.image(tmp_path / "a.png"), slide_mpp=4.0)


@pytest.mark.parametrize("option", ["spot_diameter_um", "slide_mpp", "image_scale"])
def test_impossible_options_are_refused(save, option):
    """Lengths and factors are positive."""
    with pytest.raises(AssayError, match=f"{option} must be a positive number, got -1"):
        read_h5ad(save(), **{option: -1.0})


def test_microns_per_pixel_and_bin_size_are_read(save):
    """What the factors say: mpp at the scale of the image, squares, diameter in um."""
    assay = read_h5ad(save(uns={"spatial": library(microns_per_pixel=2.0, bin_size_um=8.0)}), spot_diameter_um=8.0)
    assert assay.mpp == pytest.approx(4.0)
    assert assay.shape == "square"
    np.testing.assert_allclose(assay.spots["diameter_px0"], 2.0)
    assert any("microns_per_pixel of uns['spatial']" in note for note in assay.notes)


def array_obs(known, **columns):
    """Table of spots with the array coordinates of Visium."""
    table = {"in_tissue": known.in_tissue, "patient": "P1", "array_row": known.array_row, "array_col": known.array_col}
    return pd.DataFrame(table | columns, index=known.barcodes)


def test_the_array_of_visium_tells_the_mpp(save, known):
    """array_row and array_col that fit give um per px as they do for Space Ranger's own files."""
    assay = read_h5ad(save(obs=array_obs(known)))
    assert_known(assay, known, 0.5)
    assert assay.mpp == pytest.approx(2.0 / 0.5)
    assert any("full-resolution mpp 2 um/px from the array's pitch" in note for note in assay.notes)
    assert any("13.75 px = 55.0 um wide" in note for note in assay.notes)


def test_array_columns_that_do_not_fit_leave_the_mpp_unknown(save, known):
    """Words, and another array, are noted but not a fault."""
    for columns in ({"array_row": known.array_col, "array_col": known.array_row}, {"array_row": "a"}):
        assay = read_h5ad(save(obs=array_obs(known, **columns)))
        assert assay.mpp is None
        assert any("do not fit the array of Visium" in note for note in assay.notes)


@pytest.mark.parametrize("kind", [bool, float, str, "category"])
def test_in_tissue_of_every_type_filters_spots(save, known, kind):
    """Flags, numbers and words mean the same."""
    flag = pd.Series(known.in_tissue, index=known.barcodes).astype(kind)
    obs = pd.DataFrame({"in_tissue": flag, "patient": "P1"})
    assert_known(read_h5ad(save(obs=obs)), known, 0.5)


def test_without_in_tissue_all_spots_are_kept(save, known):
    """No flag, no filter, no note."""
    assay = read_h5ad(save(obs=pd.DataFrame(index=known.barcodes)))
    np.testing.assert_array_equal(assay.counts.toarray(), known.counts)
    assert not any("left out" in note for note in assay.notes)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_x_of_every_form_is_read(save, known, form):
    """Dense and sparse files hold the same counts."""
    assert_known(read_h5ad(save(x=form(known.counts.astype(np.float64)))), known, 0.5)


def test_the_counts_layer_stands_in_for_normalised_x(save, known):
    """layers["counts"] is taken before raw, with a note."""
    raw = anndata.AnnData(np.zeros((12, 1), np.float32), var=pd.DataFrame(index=["other"]))
    assay = read_h5ad(save(x=np.log1p(known.counts), layers={"counts": known.counts}, raw=raw))
    assert_known(assay, known, 0.5)
    assert "X of a.h5ad holds no raw counts, layers['counts'] was read" in assay.notes


def test_raw_stands_in_for_normalised_x(save, known):
    """raw.X is taken with the genes of raw.var."""
    var = pd.DataFrame({"gene_id": known.ids}, index=known.genes)
    with pytest.warns(UserWarning, match="Variable names are not unique"):
        raw = anndata.AnnData(sparse.csr_matrix(known.counts.astype(np.float32)), var=var)
    cut = np.log1p(known.counts[:, :2])
    assay = read_h5ad(save(x=cut, var=pd.DataFrame(index=known.genes[:2]), raw=raw))
    assert_known(assay, known, 0.5)
    assert "X of a.h5ad holds no raw counts, raw.X was read" in assay.notes


def test_normalised_values_everywhere_are_refused_with_all_reasons(save, known):
    """Each place is named with its first wrong value."""
    normalised = np.log1p(known.counts)
    with pytest.raises(AssayError, match=r"a\.h5ad, X, which .*log-normalised.*a\.h5ad, layers\['counts'\], which"):
        read_h5ad(save(x=normalised, layers={"counts": normalised}))


def test_a_file_without_any_counts_is_refused(save, known):
    """X may be absent in AnnData, but counts may not."""
    path = save()
    with h5py.File(path, "r+") as file:
        del file["X"]
    with pytest.raises(AssayError, match=r"must hold counts in X, layers\['counts'\] or raw\.X, got none"):
        read_h5ad(path)


def test_without_an_id_column_the_names_are_the_ids(save, known):
    """A gene's name before it is made unique is its id."""
    assay = read_h5ad(save(var=pd.DataFrame(index=known.genes)))
    assert assay.genes["gene_id"].tolist() == known.genes


def test_all_faults_of_the_spots_are_listed(save, known):
    """Repeated names, other flags and infinite positions stand in one message."""
    names = [known.barcodes[1], *known.barcodes[1:]]
    obs = pd.DataFrame({"in_tissue": [5, *known.in_tissue[1:]]}, index=names)
    position = np.column_stack([known.x_fullres, known.y_fullres])
    position[1, 0] = np.inf
    with pytest.raises(
        AssayError,
        match=r"1 spot names are repeated: .*in_tissue'\] must be 0 or 1, is 5; obsm\['spatial'\] must be finite",
    ):
        read_h5ad(save(obs=obs, spatial=position))


def test_an_infinite_position_outside_the_tissue_is_no_fault(save, known):
    """Spots that are left out need no position, also for the fit of the array."""
    position = np.column_stack([known.x_fullres, known.y_fullres])
    position[3] = np.nan
    assay = read_h5ad(save(obs=array_obs(known), spatial=position))
    assert_known(assay, known, 0.5)
    assert assay.mpp == pytest.approx(4.0)


def test_missing_positions_are_refused_with_what_there_is(save):
    """The keys of obsm are named."""
    with pytest.raises(AssayError, match=r"obsm\['spatial'\] is missing \(obsm holds X_umap\)"):
        read_h5ad(save(obsm="X_umap"))


def test_positions_of_three_columns_are_refused(save):
    """x and y, nothing more."""
    with pytest.raises(AssayError, match=r"obsm\['spatial'\] must be \(12, 2\) numbers, got \(12, 3\) of type float64"):
        read_h5ad(save(spatial=np.zeros((12, 3))))


def test_no_spot_under_tissue_is_refused(save, known):
    """An assay without spots is a fault."""
    with pytest.raises(AssayError, match="none of its 12 spots is under tissue"):
        read_h5ad(save(obs=pd.DataFrame({"in_tissue": 0}, index=known.barcodes)))


def test_impossible_scale_factors_are_refused(save):
    """The faulty factor is named with the place it stands."""
    with pytest.raises(AssayError, match=r"uns\['spatial'\]: tissue_hires_scalef must be a positive number, got"):
        read_h5ad(save(uns={"spatial": library(tissue_hires_scalef=-0.5)}))


def test_an_image_that_does_not_exist_is_refused(save):
    """A wrong path is said before anything is read."""
    with pytest.raises(SlideError, match=r"no\.svs does not exist"):
        read_h5ad(save(), image="no.svs")


@pytest.mark.parametrize("harm", ["truncated", "encoding", "not hdf5", "absent"])
def test_a_corrupt_file_is_named(save, harm):
    """Half a file, an unknown encoding and another format are refused by name."""
    path = save()
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif harm == "not hdf5":
        path.write_text("x,y")
    elif harm == "absent":
        path.unlink()
    else:
        with h5py.File(path, "r+") as file:
            file["obs"].attrs["encoding-version"] = "99.0.0"
    with pytest.raises(AssayError, match=r"a\.h5ad cannot be read as AnnData .*; copy or download the file again"):
        read_h5ad(path)


@pytest.mark.parametrize(
    ("name", "n_spots", "total"), [("MOB1", 379, 958111), ("MOB2", 407, 1127390), ("MOB3", 438, 1538864)]
)
def test_the_olfactory_bulbs(shared_data, name, n_spots, total):
    """Real ST sections as AnnData: spots in tissue, total, positions as they are, diameter from options."""
    path = shared_data / "mob" / f"{name}.h5ad"
    assay = read_h5ad(path, image=path.with_suffix(".jpg"), spot_diameter_um=100.0, slide_mpp=4.15)
    assert assay.counts.shape == (n_spots, 1000)
    assert assay.counts.sum() == total
    np.testing.assert_array_equal(assay.spots["x_px0"], assay.spots["pixel_x"])
    np.testing.assert_array_equal(assay.spots["y_px0"], assay.spots["pixel_y"])
    np.testing.assert_allclose(assay.spots["diameter_px0"], 100 / 4.15)
    with pytest.raises(AssayError, match="--spot-diameter-um"):
        read_h5ad(path, image=path.with_suffix(".jpg"))


def test_a_slide_that_states_its_resolution_needs_no_other(save, tmp_path):
    """A spot diameter in um is converted with the mpp of the image file; a file without one is asked for."""
    tagged, plain = tmp_path / "tagged.tif", tmp_path / "plain.png"
    tifffile.imwrite(tagged, np.full((300, 300, 3), 255, np.uint8), resolution=(20000, 20000), resolutionunit=3)
    Image.fromarray(np.full((300, 300, 3), 255, np.uint8)).save(plain)
    assay = read_h5ad(save(uns={}), image=tagged, spot_diameter_um=55.0)
    np.testing.assert_allclose(assay.spots["diameter_px0"], 55.0 / 0.5)
    with pytest.raises(AssayError, match="pass --slide-mpp"):
        read_h5ad(save(uns={}), image=plain, spot_diameter_um=55.0)
