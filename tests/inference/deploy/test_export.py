"""Laws of an exported network: without this package it computes what the run does, and its manual says how."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data.torchscript_utils import load_net_with_metadata

from superst_monai.data.section import Section
from superst_monai.errors import RunError, StoreError
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.deploy.export import TOLERANCE, compare, export_network
from superst_monai.inference.deploy.formats import FORMATS, Format
from superst_monai.inference.posterior import Window
from superst_monai.inference.run import Run
from superst_monai.transforms.tissue import find_tissue

FRESH = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[3].split(","):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked())
try:
    import superst_monai
except ImportError:
    pass
else:
    raise SystemExit("superst_monai can be imported")
import numpy

images = numpy.load("images.npz")
found = {name: {} for name in sys.argv[1].split(",")}
for module in sys.argv[2].split(","):
    globals()[module] = __import__(module)
for file in found:
    said = json.load(open(file + ".json"))
    for key, image in images.items():
        if "torch" in said["run"]:
            image = torch.from_numpy(image)
        found[file][key] = eval(said["run"])
    numpy.savez("found_" + file, **{key: numpy.asarray(value) for key, value in found[file].items()})
"""
FILES = {"pt2": "net.pt2", "onnx": "net.onnx", "ts": "net.ts"}


@pytest.fixture(scope="module")
def trained(run: Run) -> Run:
    """A run one of whose metagenes was dropped."""
    network = copy.deepcopy(run.network)
    network.generative.active[1] = False
    return replace(run, network=network)


@pytest.fixture(scope="module")
def exported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run exported to every format, and random images of other numbers and sizes."""
    folder = tmp_path_factory.mktemp("exported")
    for name, file in FILES.items():
        found = export_network(trained, folder / file, format=name)
        assert 0 <= found.absolute < TOLERANCE
        assert 0 <= found.relative < TOLERANCE
    rng = np.random.default_rng(1)
    shapes = {"one": (1, 3, 8, 44), "some": (5, 3, 36, 20)}
    images = {name: rng.uniform(-0.9, 0.9, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(folder / "images.npz", **images)
    return folder


def assert_as_the_run(trained: Run, folder: Path, file: str) -> None:
    """What a fresh process found is what the run's network gives."""
    images, found = np.load(folder / "images.npz"), np.load(folder / f"found_{file}.npz")
    for key, image in images.items():
        with torch.inference_mode():
            expected = trained.network(torch.from_numpy(image)).numpy()
        assert found[key].dtype == np.float32
        assert expected.max() > 1e-3
        assert (found[key][:, 1] == 0).all()
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-4 * min(1.0, float(expected.max())))


@pytest.mark.parametrize(
    ("files", "modules", "blocked"),
    [
        ("net.pt2,net.ts", "torch", "superst_monai,monai,pyro"),
        ("net.onnx", "onnxruntime", "superst_monai,monai,pyro,torch"),
    ],
)
def test_an_export_runs_without_this_package(
    trained: Run, exported: Path, files: str, modules: str, blocked: str
) -> None:
    """In a fresh process that cannot import superst_monai, the line of the manual gives the activity of the run."""
    command = [sys.executable, "-I", "-W", "ignore::DeprecationWarning", "-c", FRESH, files, modules, blocked]
    done = subprocess.run(command, cwd=exported, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in files.split(","):
        assert_as_the_run(trained, exported, file)


def test_a_pt2_file_holds_no_pickle(exported: Path) -> None:
    """Weights are plain bytes beside JSON; the one entry that could be a pickle is empty."""
    with zipfile.ZipFile(exported / "net.pt2") as archive:
        pickles = [info.filename for info in archive.infolist() if info.filename.endswith(".pt") and info.file_size]
    assert pickles == []


def test_a_torchscript_file_carries_metadata_and_configuration(trained: Run, exported: Path) -> None:
    """As MONAI's own export, it holds metadata.json and inference.json."""
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.load"):
        _, about, extra = load_net_with_metadata(str(exported / "net.ts"), more_extra_files=["inference.json"])
    assert about == json.loads((trained.path / "configs" / "metadata.json").read_text())
    config = json.loads(extra["inference.json"])
    assert {"network_def", "preprocessing", "postprocessing", "inferer", "device", "bundle_root"} <= set(config)


def test_the_manual_belongs_to_the_file(trained: Run, exported: Path) -> None:
    """Hashes, sizes and active metagenes are those of the export and its run."""
    for file in FILES.values():
        said = json.loads((exported / f"{file}.json").read_text())
        assert said["sha256"] == hashlib.sha256((exported / file).read_bytes()).hexdigest()
        assert said["run_sha256"] == trained.weights_sha256
        assert (said["mpp"], said["side_multiple"], said["least_side"]) == (4.0, 4, 8)
        assert said["active"] == [True, False, True, True]
        assert said["conditions"] == {"section": None}
        assert said["intended_use"].startswith("Research")
        assert said["genes_file"] == f"{file}.genes.csv"


def test_the_gene_table_turns_activity_into_expected_counts(trained: Run, exported: Path) -> None:
    """An entry is exp of the mean log rate plus the mean logit, summed up term by term."""
    table = pd.read_csv(exported / "net.onnx.genes.csv", index_col="gene")
    model, guide = trained.network.generative, trained.network.guide
    for g, gene in enumerate(trained.genes):
        assert table.loc[gene, "gene_id"] == trained.gene_ids[g]
        for k in range(4):
            log = model.log_rate[g] + model.logit[g] + guide.profile.mean[k, g]
            for effect in (guide.rate_effect["section"], guide.logit_effect["section"]):
                log = log + (effect.mean[0, g] + effect.mean[1, g]) / 2
            assert table.loc[gene, f"metagene_{k + 1}"] == pytest.approx(float(log.detach().exp()), rel=1e-5)


def prepared(image: np.ndarray, tissue: np.ndarray, said: dict) -> np.ndarray:
    """The image `(3, H', W')` as the manual has it, pixel by pixel where it matters."""
    step = {entry["step"]: entry for entry in said["steps"]}
    glass, white = step["glass"], step["glass"]["white"]
    level = image.mean(axis=2)
    height, width = level.shape
    taken, bright = [], []
    for r in range(height):
        for c in range(width):
            low, high = int(image[r, c].min()), int(image[r, c].max())
            if tissue[r, c] or high < glass["not_black"]:
                continue
            taken.append((r, c))
            if low >= glass["darkest"] and high - low <= glass["tint"] and high - image[r, c, 1] <= glass["pink"]:
                bright.append((r, c))
    tinted = [(r, c) for r, c in bright if image[r, c].min() < white]
    bright = tinted if len(tinted) >= glass["tinted_share"] * len(taken) else bright
    least = np.percentile([level[p] for p in bright], glass["level_percentile"]) - glass["depth"]
    bright = [p for p in bright if level[p] >= least]
    uneven = [np.ptp(level[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]) for r, c in bright]
    most = np.percentile(uneven, glass["unevenness_percentile"])
    colour = np.median([image[p] for p, u in zip(bright, uneven, strict=True) if u <= most], axis=0)
    balance = step["balance"]
    values = np.minimum(balance["white"], np.rint(image * (balance["glass_level"] / colour)))
    sides = [-(-side // said["side_multiple"]) * said["side_multiple"] for side in (height, width)]
    padded = np.full((*sides, 3), step["pad"]["value"], np.float64)
    padded[:height, :width] = values
    scale = step["scale"]
    return np.moveaxis(padded / scale["white"] * (scale["high"] - scale["low"]) + scale["low"], -1, 0)


def test_the_manual_prepares_images_as_the_prediction_does(section: Section, exported: Path) -> None:
    """Its numbers, followed in plain numpy, give the very image that `superst predict` hands to the network."""
    said = json.loads((exported / "net.pt2.json").read_text())
    rng = np.random.default_rng(5)
    image = section.image.astype(np.int64)
    glass = np.array([250, 238, 205]) + rng.integers(-2, 3, (*section.tissue.shape, 1))
    image[~section.tissue] = glass[~section.tissue]
    image[-12:] = 3  # the frame of a scanner
    image[:20, -60:] = 255  # where a viewer pads
    image[40:60, 150:180] = (240, 180, 220)  # leaked stain
    image[90:120, 150:190] = rng.integers(205, 216, (30, 40, 1))  # a shadow
    tinted = replace(section, image=image.astype(np.uint8))
    canvas = canvas_of(tinted, 4.0, find_tissue)
    expected = canvas.image(Window(0, 0, 152, 212)).numpy()
    np.testing.assert_allclose(prepared(tinted.image, section.tissue, said), expected, atol=1e-6)
    assert canvas.glass[2] < 215  # so that the balance is seen


@pytest.mark.parametrize("change", [lambda a: a + 2e-4, lambda a: a[:, :, 1:], lambda a: a * float("nan")])
def test_an_export_that_does_not_agree_is_not_written(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """A difference of 2e-4, another shape and NaN are refused, and leave nothing behind."""
    wrong = Format(lambda *_: b"", lambda _, image: change(trained.network(image)), "")
    monkeypatch.setitem(FORMATS, "pt2", wrong)
    with pytest.raises(RunError, match=r"must agree with its network within 0\.0001, but on images \(3, 3, 20, 28\)"):
        export_network(trained, tmp_path / "net.pt2", format="pt2")
    assert list(tmp_path.iterdir()) == []


def test_small_activity_is_compared_in_its_own_measure(trained: Run) -> None:
    """A difference below 1e-4 is refused where it is more than 1e-4 of the largest activity."""
    network = copy.deepcopy(trained.network)
    with torch.no_grad():
        network.generative.expression_decoder.scale.bias.sub_(12)
    off = Format(lambda *_: b"", lambda _, image: network(image) * 1.001, "")
    with pytest.raises(RunError, match=r"differs by .*e-0[5-9], 0\.001 of the largest activity"):
        compare(network, off, b"")


@pytest.mark.parametrize(
    ("name", "file"), [("pt2", "net.onnx"), ("tensorrt", "net.tensorrt"), ("onnx", "onnx"), ("ts", "net.TS")]
)
def test_format_and_suffix_must_agree(trained: Run, tmp_path: Path, name: str, file: str) -> None:
    """A format that there is not, or a file of another suffix, is refused with an example."""
    with pytest.raises(
        RunError, match=r"one of pt2, onnx, ts, and the file's name ends in it, but got .* --format pt2"
    ):
        export_network(trained, tmp_path / file, format=name)


def test_onnx_without_its_libraries_names_the_extra(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing and how to install it."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(RunError, match=r"but onnxscript cannot be imported; install .* 'superst-monai\[onnx\]'"):
        export_network(trained, tmp_path / "net.onnx", format="onnx")


def test_a_run_without_metadata_is_not_exported(trained: Run, tmp_path: Path) -> None:
    """The files beside an export repeat what the bundle says of itself, so it must be there."""
    bare = replace(trained, path=tmp_path)
    with pytest.raises(RunError, match=r"metadata\.json or inference\.yaml of .*; superst bundle check tells"):
        export_network(bare, tmp_path / "net.ts", format="ts")


def test_names_that_are_taken_are_kept_unless_told(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of the three files is refused, all at once; with overwrite all three are new."""
    monkeypatch.setitem(FORMATS, "ts", Format(lambda *_: b"new", lambda _, image: trained.network(image), "run FILE"))
    for name in ("net.ts", "net.ts.json"):
        (tmp_path / name).write_text("old")
    with pytest.raises(StoreError, match=r"net\.ts, .*net\.ts\.json must not exist yet; .* --overwrite"):
        export_network(trained, tmp_path / "net.ts", format="ts")
    export_network(trained, tmp_path / "net.ts", format="ts", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.ts", "net.ts.genes.csv", "net.ts.json"]
    assert (tmp_path / "net.ts").read_bytes() == b"new"
    assert json.loads((tmp_path / "net.ts.json").read_text())["run"] == "run 'net.ts'"
