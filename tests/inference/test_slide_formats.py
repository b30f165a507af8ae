"""One real slide in four formats goes through `superst predict`, and gives one map."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid
from typer.testing import CliRunner

from superst_monai.cli.app import app
from superst_monai.data.slide import Slide
from superst_monai.inference.maps import Maps, open_maps

LEVELS, TILE_PX = 3, 256


def pyramid(pixels: np.ndarray) -> list[np.ndarray]:
    """An image and its halvings."""
    return [np.asarray(Image.fromarray(pixels).reduce(2**level)) for level in range(LEVELS)]


def write_tiff(pixels: np.ndarray, mpp: float, path: Path) -> Path:
    """Write a pyramidal TIFF, a page a level."""
    with tifffile.TiffWriter(path) as writer:
        for level, image in enumerate(pyramid(pixels)):
            per_cm = 10_000 * image.shape[1] / (mpp * pixels.shape[1])
            options = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER", "subfiletype": int(level > 0)}
            tile = (TILE_PX, TILE_PX)
            writer.write(image, photometric="rgb", tile=tile, compression="deflate", metadata=None, **options)
    return path


def write_ome_tiff(pixels: np.ndarray, mpp: float, path: Path) -> Path:
    """Write an OME-TIFF, its levels in sub-images."""
    size = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    options: dict[str, Any] = {"photometric": "rgb", "tile": (TILE_PX, TILE_PX), "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        first, *others = pyramid(pixels)
        writer.write(first, subifds=LEVELS - 1, metadata={"axes": "YXS", **size}, **options)
        for image in others:
            writer.write(image, subfiletype=1, **options)
    return path


def write_dicom(pixels: np.ndarray, mpp: float, folder: Path) -> Path:
    """Write a whole-slide series, an instance a level, tiles in JPEG.

    By pydicom: wsidicomizer needs libturbojpeg of the system, and an older universal_pathlib than is pinned.
    """
    folder.mkdir()
    study, series, frame = (generate_uid(entropy_srcs=[name]) for name in ("study", "series", "frame"))
    for level, image in enumerate(pyramid(pixels)):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid(None, [str(level)])
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.Modality, data.InstanceNumber, data.LossyImageCompression = "SM", level + 1, "01"
        kind = ("DERIVED", "RESAMPLED") if level else ("ORIGINAL", "NONE")
        data.ImageType = [kind[0], "PRIMARY", "VOLUME", kind[1]]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
        data.Rows = data.Columns = TILE_PX
        data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = image.shape[:2]
        data.DimensionOrganizationType, data.TotalPixelMatrixFocalPlanes = "TILED_FULL", 1
        optical, measures, shared = Dataset(), Dataset(), Dataset()
        optical.OpticalPathIdentifier = "1"
        data.NumberOfOpticalPaths, data.OpticalPathSequence = 1, [optical]
        measures.PixelSpacing = [mpp * full / now / 1000 for full, now in zip(pixels.shape, image.shape, strict=True)][
            :2
        ]
        shared.PixelMeasuresSequence = [measures]
        data.SharedFunctionalGroupsSequence = [shared]
        frames = [jpeg(image[top:, left:]) for top, left in corners(image)]
        data.NumberOfFrames, data.PixelData = len(frames), encapsulate(frames)
        data["PixelData"].VR = "OB"
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        data.save_as(folder / f"level{level}.dcm", enforce_file_format=True)
    return folder


def corners(image: np.ndarray) -> list[tuple[int, int]]:
    """Upper left pixels of the tiles of an image, row by row."""
    return [(top, left) for top in range(0, image.shape[0], TILE_PX) for left in range(0, image.shape[1], TILE_PX)]


def jpeg(image: np.ndarray) -> bytes:
    """The tile in the upper left corner of an image, black beyond it."""
    tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    part = image[:TILE_PX, :TILE_PX]
    tile[: part.shape[0], : part.shape[1]] = part
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def predicted(
    shared_data: Path, make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Maps]:
    """Maps of one slide in each format, as the command writes them."""
    source = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    if not source.is_file():
        pytest.skip("the slide CMU-1-Small-Region.svs is not here")
    folder = tmp_path_factory.mktemp("formats")
    with Slide.open(source) as slide:
        pixels, mpp = slide.read(slide.whole(), slide.mpp_x), slide.mpp_x
    paths = [
        source,
        write_tiff(pixels, mpp, folder / "pyramid.tif"),
        write_ome_tiff(pixels, mpp, folder / "ome.ome.tif"),
        write_dicom(pixels, mpp, folder / "dicom"),
    ]
    run = make_run(folder / "run", mpp=8.0)
    done = CliRunner().invoke(app, ["predict", *map(str, [run, *paths, "--out", folder / "maps", "--samples", 2])])
    assert done.exit_code == 0, done.output
    names = (source.stem, "pyramid", "ome.ome", "dicom")
    return {name: open_maps(folder / "maps" / f"{name}.maps.zarr") for name in names}


def test_each_format_is_read_as_what_it_is(predicted: dict[str, Maps]) -> None:
    """The reader, the resolution that the file states and the levels stand in the record."""
    found = {name: maps.record["slide"] for name, maps in predicted.items()}
    assert {name: (slide["reader"], slide["vendor"], slide["levels"]) for name, slide in found.items()} == {
        "CMU-1-Small-Region": ("openslide", "aperio", 1),
        "pyramid": ("openslide", "generic-tiff", LEVELS),
        "ome.ome": ("tifffile", None, LEVELS),
        "dicom": ("openslide", "dicom", LEVELS),
    }
    assert all(slide["mpp_source"] == "file" for slide in found.values())
    np.testing.assert_allclose([slide["mpp_x"] for slide in found.values()], 0.499, rtol=1e-6)


def test_the_map_does_not_depend_on_the_format(predicted: dict[str, Maps]) -> None:
    """The same pixels give the same map; JPEG and levels made by others change it by a hundredth at most."""
    original, tiff, ome = (predicted[name] for name in ("CMU-1-Small-Region", "pyramid", "ome.ome"))
    for gene in ("Mbp", "ACTB"):
        np.testing.assert_array_equal(ome.gene(gene)[0], tiff.gene(gene)[0])
        expected = original.gene(gene)[0]
        for maps in predicted.values():
            found = maps.gene(gene)[0]
            assert (maps.tissue != original.tissue).mean() < 0.002
            assert found.sum() == pytest.approx(expected.sum(), rel=0.01)
            both = maps.tissue & original.tissue
            assert np.abs(found - expected)[both].sum() < 0.02 * expected[both].sum()
