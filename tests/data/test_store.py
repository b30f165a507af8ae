"""Section stores: exact round trip, plain SpatialData, whole or not at all, and clear words about foreign folders."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

from superst_monai.data import atomic
from superst_monai.data.atomic import new_store
from superst_monai.data.preflight import preflight
from superst_monai.data.section import Section
from superst_monai.data.store import read_section, write_section
from superst_monai.errors import StoreError

MakeSection = Callable[..., Section]


@pytest.fixture(scope="module")
def stored(make_section: MakeSection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The painted section in a store; tests copy it before they change it."""
    path = tmp_path_factory.mktemp("sections") / "P.zarr"
    write_section(make_section(columns={"patient": "p1"}), path)
    return path


@pytest.fixture
def copied(stored: Path, tmp_path: Path) -> Path:
    """A store that the test may damage."""
    return Path(shutil.copytree(stored, tmp_path / "copy.zarr"))


def assert_same(one: Section, other: Section) -> None:
    """Every field and every dtype agrees, exactly."""
    for field in ("name", "mpp", "platform", "shape"):
        assert getattr(one, field) == getattr(other, field)
    assert dict(one.slide) == dict(other.slide)
    for field in ("image", "tissue"):
        assert getattr(one, field).dtype == getattr(other, field).dtype
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    pd.testing.assert_frame_equal(one.spots, other.spots, check_exact=True)
    pd.testing.assert_frame_equal(one.genes, other.genes)
    assert one.counts.dtype == other.counts.dtype
    assert (one.counts != other.counts).nnz == 0


def set_attrs(path: Path, **changes: Any) -> None:
    """Change the section's attributes; None removes one."""
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    meta = content["attributes"]["superst_monai"] | changes
    content["attributes"]["superst_monai"] = {key: value for key, value in meta.items() if value is not None}
    file.write_text(json.dumps(content))


def test_a_section_comes_back_exactly(stored: Path, make_section: MakeSection) -> None:
    """Image, mask, counts, micrometres, dtypes and further columns survive the store."""
    assert_same(read_section(stored), make_section(columns={"patient": "p1"}))


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_shapes_numbers_and_texts_survive(shape: str, make_section: MakeSection, tmp_path: Path) -> None:
    """Squares, odd micrometres and columns of every kind come back as they were."""
    section = make_section(mpp=4.1)
    n = section.n_spots
    spots = section.spots.assign(
        x_um=section.spots["x_um"] / 3, flag=np.arange(n) % 2 == 0, kind=pd.Categorical(["a", "b"] * (n // 2))
    )
    section = replace(section, spots=spots, shape=shape)
    write_section(section, str(tmp_path / "s.zarr"))
    assert_same(read_section(str(tmp_path / "s.zarr")), section)


def test_a_slide_alone_has_neither_spots_nor_table(make_section: MakeSection, tmp_path: Path) -> None:
    """Image and mask are all there is."""
    section = make_section(alone=True)
    write_section(section, tmp_path / "s.zarr")
    assert_same(read_section(tmp_path / "s.zarr"), section)
    assert not (tmp_path / "s.zarr" / "shapes").exists()
    assert not (tmp_path / "s.zarr" / "tables" / "counts").exists()


def test_spatialdata_reads_it_in_micrometres(make_section: MakeSection, tmp_path: Path) -> None:
    """Pixels of any level, shapes and table share one place in the global system."""
    import spatialdata
    from spatialdata import get_element_annotators
    from spatialdata.transformations import get_transformation

    section = make_section(mpp=2.0)  # 600 x 800 px: one reduction
    path = tmp_path / "s.zarr"
    write_section(section, path)
    sdata = spatialdata.read_zarr(path)
    matrix = get_transformation(sdata["histology"]).to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.diag([2.0, 2.0, 1.0]))
    levels = [sdata["histology"][level]["image"] for level in sdata["histology"]]
    assert [level.shape for level in levels] == [(3, 600, 800), (3, 300, 400)]
    halved = get_transformation(levels[1]).to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(halved, np.diag([4.0, 4.0, 1.0]))
    np.testing.assert_allclose(levels[1].mean(), levels[0].mean(), atol=1.0)
    points = sdata["spots"].geometry
    np.testing.assert_array_equal(np.stack([points.x, points.y], axis=1), section.spots[["x_um", "y_um"]])
    np.testing.assert_array_equal(sdata["spots"]["radius"], section.spots["radius_um"])
    table = sdata["counts"]
    assert get_element_annotators(sdata, "spots") == {"counts"}
    np.testing.assert_array_equal(table.obsm["spatial"], section.spots[["x_um", "y_um"]])
    assert table.X.dtype == np.int32
    assert sdata["tissue"].dtype == np.uint8
    assert sdata.coordinate_systems == ["global"]


def test_squares_are_polygons_of_their_side(make_section: MakeSection, tmp_path: Path) -> None:
    """A bin of 55 um has an area of 3025 um2 about its centre."""
    import spatialdata

    section = replace(make_section(), shape="square")
    write_section(section, tmp_path / "s.zarr")
    shapes = spatialdata.read_zarr(tmp_path / "s.zarr")["spots"].geometry
    np.testing.assert_allclose(shapes.area, 55.0**2)
    np.testing.assert_allclose(shapes.centroid.x, section.spots["x_um"])


def test_the_preflight_is_kept_with_the_section(make_section: MakeSection, tmp_path: Path) -> None:
    """The table given, or made on writing, stands in the attributes with what identifies the section."""
    section = make_section()
    report = replace(preflight(section), rows=preflight(section).rows[:2])
    write_section(section, tmp_path / "given.zarr", report=report)
    write_section(section, tmp_path / "made.zarr")
    given, made = (
        json.loads((tmp_path / f"{name}.zarr" / "zarr.json").read_text())["attributes"]["superst_monai"]
        for name in ("given", "made")
    )
    assert given["preflight"] == report.table
    assert made["preflight"] == preflight(section).table
    assert {key: made[key] for key in ("kind", "format_version", "name", "mpp", "platform", "shape")} == {
        "kind": "section", "format_version": 1, "name": "P", "mpp": 4.0, "platform": "visium", "shape": "circle"
    }  # fmt: skip


def test_values_that_json_cannot_hold_are_made_plain(make_section: MakeSection, tmp_path: Path) -> None:
    """Numpy numbers become numbers, anything else its text."""
    section = make_section(alone=True)
    section = replace(section, slide=section.slide | {"levels": np.int64(3), "file": Path("a.svs")})
    write_section(section, tmp_path / "s.zarr")
    slide = read_section(tmp_path / "s.zarr").slide
    assert (slide["levels"], slide["file"]) == (3, "a.svs")


def test_an_existing_name_is_refused_unless_overwritten(make_section: MakeSection, stored: Path, copied: Path) -> None:
    """Without `overwrite` the store stays as it is; with it the new one takes its place."""
    section = make_section(alone=True)
    with pytest.raises(StoreError, match=r"copy\.zarr must not exist yet.*--overwrite / overwrite=True"):
        write_section(section, copied)
    assert_same(read_section(copied), read_section(stored))
    write_section(section, copied, overwrite=True)
    assert_same(read_section(copied), section)
    assert os.listdir(copied.parent) == ["copy.zarr"]


def test_only_stores_are_overwritten(make_section: MakeSection, tmp_path: Path) -> None:
    """A folder of other things, or a link, is never deleted."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for name in ("home", "link"):
        with pytest.raises(StoreError, match=f"{name} is not a zarr store, so it is not overwritten"):
            write_section(make_section(alone=True), tmp_path / name, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk full"), (errno.EDQUOT, "disk full"), (errno.EACCES, "Permission denied")]
)
def test_a_failed_write_leaves_nothing(
    number: int, words: str, make_section: MakeSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the system refuses in the middle of the table, the error says why and the folder is as before."""
    import anndata

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(anndata._io.specs.registry.Writer, "write_elem", refuse)
    with pytest.raises(StoreError, match=rf"s\.zarr cannot be written \({words}\), nothing was left behind"):
        write_section(make_section(), tmp_path / "s.zarr")
    assert os.listdir(tmp_path) == []


def test_a_failed_rename_restores_the_old_store(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the new store cannot take the name, the old one gets it back."""
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreError, match="Input/output error"), new_store(copied, overwrite=True) as partial:
        partial.mkdir()
    assert os.listdir(copied.parent) == ["copy.zarr"]
    assert read_section(copied).name == "P"


def test_a_first_rename_that_fails_is_an_error(tmp_path: Path) -> None:
    """Nothing to rename, nothing to restore."""
    with pytest.raises(StoreError, match="No such file"), new_store(tmp_path / "s.zarr"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_killed_write_leaves_a_hidden_folder_that_the_next_removes(tmp_path: Path) -> None:
    """After SIGKILL the name is free; the next write takes away what the dead process left."""
    code = f"""
import os, pathlib, signal
from superst_monai.data.atomic import new_store
with new_store(pathlib.Path({str(tmp_path / "s.zarr")!r})) as partial:
    partial.mkdir(); (partial / "zarr.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(atomic.__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", code], check=False, cwd=root)
    assert process.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".s.zarr.partial-")
    with new_store(tmp_path / "s.zarr") as partial:
        partial.mkdir()
    assert os.listdir(tmp_path) == ["s.zarr"]


def test_leftovers_of_the_living_and_of_strangers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of running processes and other machines, and an old store whose successor never came, are kept."""
    host, dead = socket.gethostname(), 2**22 + 7
    kept = {f".s.zarr.partial-{host}-{os.getppid()}", f".s.zarr.partial-elsewhere-{dead}", f".s.zarr.old-{host}-{dead}"}
    for name in (*kept, f".s.zarr.partial-{host}-{dead}", f".s.zarr.partial-{host}-{os.getpid()}"):
        (tmp_path / name).mkdir()
    with new_store(tmp_path / "s.zarr") as partial:
        partial.mkdir()
    assert set(os.listdir(tmp_path)) == {*kept, "s.zarr"}
    monkeypatch.setattr(atomic.os, "name", "nt")
    assert atomic.is_alive(dead)


def test_a_process_of_another_user_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system forbids to signal it, so it is there."""

    def forbid(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(atomic.os, "kill", forbid)
    assert atomic.is_alive(1)


def test_names_that_a_table_cannot_hold_are_refused(make_section: MakeSection, tmp_path: Path) -> None:
    """Barcodes and genes are unique, and two columns belong to the store; all faults come at once."""
    section = make_section()
    spots = section.spots.set_axis(["a"] * section.n_spots).assign(instance_id=1)
    broken = replace(section, spots=spots, genes=section.genes.set_axis(["g", "g", "h"]))
    with pytest.raises(StoreError, match=r"barcodes must be unique; genes must be unique; .*instance_id is reserved"):
        write_section(broken, tmp_path / "s.zarr")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    """A missing path, a file, an empty folder and broken metadata are told apart from sections."""
    with pytest.raises(StoreError, match=r"there is no section .*none\.zarr; check the path"):
        read_section(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("x")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    for name in ("empty", "file", "broken"):
        with pytest.raises(StoreError, match=rf"{name}\.zarr is not a zarr store .*superst prepare"):
            read_section(tmp_path / f"{name}.zarr")


def test_stores_of_another_kind_are_refused(copied: Path, tmp_path: Path) -> None:
    """Foreign zarr, other kinds and other versions are named for what they are."""
    zarr.open_group(tmp_path / "foreign.zarr", mode="w")
    with pytest.raises(StoreError, match=r"foreign\.zarr must be a section, got no superst_monai store"):
        read_section(tmp_path / "foreign.zarr")
    set_attrs(copied, kind="posterior maps")
    with pytest.raises(StoreError, match="must be a section, got posterior maps"):
        read_section(copied)
    set_attrs(copied, kind="section", format_version=99)
    with pytest.raises(StoreError, match="must have format version 1, got 99"):
        read_section(copied)


def test_missing_parts_are_all_listed(copied: Path) -> None:
    """Attributes and elements that are not there come in one message."""
    set_attrs(copied, mpp=None)
    shutil.rmtree(copied / "labels" / "tissue")
    shutil.rmtree(copied / "tables" / "counts")
    with pytest.raises(StoreError, match="incomplete, missing attribute mpp, labels/tissue, tables/counts; build"):
        read_section(copied)


@pytest.mark.parametrize("lost", ["shapes/spots/shapes.parquet", "tables/counts/X"])
def test_damage_is_told(lost: str, copied: Path) -> None:
    """A part that cannot be decoded makes the section damaged, with the reason."""
    target = copied / lost
    shutil.rmtree(target) if target.is_dir() else target.write_bytes(b"not parquet")
    with pytest.raises(StoreError, match=r"copy\.zarr is damaged \(.*build it again"):
        read_section(copied)


def test_only_known_notices_are_kept_back(
    make_section: MakeSection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Warning filters and log filters are as before afterwards, and nothing else was silenced."""
    before = list(warnings.filters)
    with caplog.at_level(logging.WARNING):
        write_section(make_section(), tmp_path / "s.zarr")
        read_section(tmp_path / "s.zarr")
        logging.getLogger("ome_zarr.reader").warning("no parent found for %s", "x")
    assert list(warnings.filters) == before
    assert caplog.messages == ["no parent found for x"]


def test_importing_the_store_does_not_import_spatialdata() -> None:
    """The command line starts fast: spatialdata comes in only when a store is read or written."""
    code = "import sys, superst_monai.data.store; print([m for m in ('spatialdata', 'geopandas') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(atomic.__file__).parents[2]
    )
    assert run.stdout.strip() == "[]"
