"""Benchmark of streaming prediction: a synthetic slide of any size, tiles per second, peak memory, who waits for whom.

    python benchmarks/predict_slide.py --side 40000 --samples 10

The slide has 0.25 um per pixel, JPEG tiles and levels of 1, 4 and 16, and tissue on a fifth of it; it is written within
seconds from a few tiles that repeat. The run is untrained, of the default size unless --run names one: speed and memory
do not depend on the weights. Everything lies in a temporary folder. Figures are in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import tifffile
import torch
import yaml
from numpy.typing import NDArray

from superst_monai.data.slide import Slide
from superst_monai.data.synthetic import make_tissue
from superst_monai.engines.run_folder import bundle_folder
from superst_monai.inference import slide_map
from superst_monai.inference.maps_writer import MapsWriter
from superst_monai.inference.posterior import ORIENTATIONS, TileSampler
from superst_monai.inference.run import load_run
from superst_monai.inference.tiles import Part
from superst_monai.model.objective import FusionVAE

TILE_PX, MPP, DOWNSAMPLES = 512, 0.25, (1, 4, 16)
GENES, METAGENES, DEPTH, WIDTH = 5000, 12, 5, 16
WATCHED = 4
"""Tiles on which the bare network is timed."""


def layout(side_px0: int) -> NDArray[np.int64]:
    """Which of the repeated tiles lies where on level 0: 0 is glass, the others tissue on a fifth of the slide."""
    n = -(-side_px0 // TILE_PX)
    row, col = (np.mgrid[:n, :n] + 0.5) / n
    pieces = ((0.3, 0.3, 0.16, 0.22), (0.7, 0.62, 0.2, 0.13), (0.25, 0.8, 0.08, 0.08))
    tissue = np.any([((row - y) / h) ** 2 + ((col - x) / w) ** 2 < 1 for y, x, h, w in pieces], axis=0)
    return np.where(tissue, np.random.default_rng(0).integers(1, 7, (n, n)), 0)


def repeated_tiles() -> NDArray[np.uint8]:
    """One tile of glass and six of tissue `(7, 512, 512, 3)`."""
    tissue = make_tissue(seed=0, size_px=2400, mpp=MPP, n_genes=12)
    corners = [(row, col) for row in range(0, 2400 - TILE_PX, TILE_PX) for col in range(0, 2400 - TILE_PX, TILE_PX)]
    places = [np.s_[row : row + TILE_PX, col : col + TILE_PX] for row, col in corners]
    most = sorted(places, key=lambda place: -tissue.tissue[place].mean())[:6]
    glass = np.full((TILE_PX, TILE_PX, 3), (243, 241, 244), np.uint8)
    return np.stack([glass, *(tissue.image[place] for place in most)])


def write_slide(path: Path, side_px0: int) -> None:
    """Write the slide, each level from the repeated tiles reduced."""
    tiles, plan = repeated_tiles(), layout(side_px0)

    def encode(image: NDArray[np.uint8]) -> bytes:
        return bytes(
            imagecodecs.jpeg8_encode(image, level=80, colorspace="rgb", outcolorspace="ycbcr", subsampling="444")
        )

    def level_tiles(down: int) -> Iterator[bytes]:
        side = TILE_PX // down
        reduced = tiles.reshape(len(tiles), side, down, side, down, 3).mean(axis=(2, 4)).round().astype(np.uint8)
        ready = [encode(tile) for tile in reduced] if down == 1 else []
        for row in range(0, -(-len(plan) // down) * down, down):
            for col in range(0, -(-len(plan) // down) * down, down):
                here = plan[row : row + down, col : col + down]
                if down == 1:
                    yield ready[here[0, 0]]
                    continue
                whole = np.zeros((down, down), np.int64)
                whole[: here.shape[0], : here.shape[1]] = here
                yield encode(reduced[whole].transpose(0, 2, 1, 3, 4).reshape(TILE_PX, TILE_PX, 3))

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for down in DOWNSAMPLES:
            side = side_px0 // down
            writer.write(
                level_tiles(down),
                shape=(side, side, 3),
                dtype=np.uint8,
                photometric="ycbcr",
                subsampling=(1, 1),
                tile=(TILE_PX, TILE_PX),
                compression="jpeg",
                resolution=(10_000 / (MPP * down), 10_000 / (MPP * down)),
                resolutionunit="CENTIMETER",
                subfiletype=int(down > 1),
                metadata=None,
            )


def write_run(path: Path, mpp: float) -> Path:
    """Write the folder of an untrained run of the default size."""
    shutil.copytree(bundle_folder(), path)
    numbers = {"n_genes": GENES, "n_sections": 1, "n_metagenes": METAGENES, "depth": DEPTH, "width": WIDTH, "mpp": mpp}
    config = yaml.safe_load((path / "configs" / "inference.yaml").read_text())
    (path / "configs" / "inference.yaml").write_text(yaml.safe_dump(config | numbers | {"covariates": {}}))
    torch.manual_seed(0)
    network = FusionVAE(GENES, n_metagenes=METAGENES, depth=DEPTH, width=WIDTH)
    (path / "models").mkdir()
    torch.save(network.state_dict(), path / "models" / "model.pt")
    names = pd.Index([f"G{i}" for i in range(GENES)], name="gene")
    pd.DataFrame({"gene_id": names}, index=names).to_csv(path / "genes.csv")
    (path / "run.json").write_text(json.dumps({"state": "done", "mpp": mpp}))
    return path


@torch.inference_mode()
def bare_network_s(sampler: TileSampler, part: Part) -> float:
    """Seconds of the network alone on a tile in memory: its encoder once an orientation, its decoders once a sample."""
    network, halo = sampler.network, sampler.halo
    image = part.image[None].contiguous(memory_format=torch.channels_last)
    trim = halo.whole - halo.decoder
    started = time.perf_counter()
    for _ in range(min(ORIENTATIONS, sampler.samples)):
        laws = network.guide.encoder(image)
    encoding = time.perf_counter() - started
    latents = []
    for d, (mean, _) in enumerate(laws):
        by = trim >> d
        inner = mean[..., by : mean.shape[-2] - by, by : mean.shape[-1] - by]
        latents.append(inner.contiguous(memory_format=torch.channels_last))
    started = time.perf_counter()
    for _ in range(sampler.samples):
        network.generative.expression(network.generative.decode(latents))
    return encoding + time.perf_counter() - started


class Watch:
    """Adds up the seconds that threads spend in functions, and times the bare network between some tiles.

    The network is timed right before it draws such a tile, since the speed of a shared machine changes.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bare_s: dict[int, float] = {}
        self.drawn_s: dict[int, float] = {}
        self._tile, self._since = -1, time.perf_counter()

    def timed(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, watched."""

        @wraps(do)
        def watched(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return do(*args, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

        return watched

    def drawing(self, do: Callable[..., Any]) -> Callable[..., Any]:
        """`draw_part`, watched: from the beginning of a tile to that of the next."""

        @wraps(do)
        def watched(sampler: TileSampler, part: Part, *args: Any) -> Any:
            self.drawn_s[self._tile] = time.perf_counter() - self._since
            self._tile += 1
            if 1 <= self._tile <= WATCHED:
                self.bare_s[self._tile] = bare_network_s(sampler, part)
            self._since = time.perf_counter()
            return do(sampler, part, *args)

        return watched


def main() -> None:
    """Write slide and run, predict, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="of the slide, level-0 pixels of 0.25 um")
    parser.add_argument("--mpp", type=float, default=4.0, help="of the run, um per pixel")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--run", type=Path, help="run folder instead of an untrained one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="predict_slide-") as name:
        folder = Path(name)
        started = time.perf_counter()
        writer = get_context("spawn").Process(target=write_slide, args=(folder / "slide.tif", given.side))
        writer.start()  # in a process of its own, so that the peak of memory is that of the prediction
        writer.join()
        size, took = (folder / "slide.tif").stat().st_size / 2**20, time.perf_counter() - started
        print(f"slide {given.side} x {given.side} px0, {size:.0f} MiB, written in {took:.0f} s")
        run = load_run(given.run or write_run(folder / "run", given.mpp))
        watch = Watch()
        slide_map.read_part = watch.timed("reading", slide_map.read_part)
        slide_map.draw_part = watch.drawing(slide_map.draw_part)
        for name in ("write_sample", "finish_tile"):
            setattr(MapsWriter, name, watch.timed("writing", getattr(MapsWriter, name)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        looped: list[float] = []
        started = time.perf_counter()
        with Slide.open(folder / "slide.tif") as slide:
            options = {"samples": given.samples, "show": lambda _, s: looped.append(s), "tell": print}
            out = slide_map.predict(run, slide, folder / "maps.zarr", **options)
        whole = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        stored = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    n_tiles, drawn = len(looped) // given.samples, looped[-1] - sum(watch.bare_s.values())
    print(f"{platform.machine()}, {torch.get_num_threads()} threads of torch, {run.device}, {given.samples} samples")
    print(f"{n_tiles} tiles of {TILE_PX} px at {run.mpp:g} um in {drawn:.1f} s: {n_tiles / drawn:.3f} tiles/s")
    print(f"beside the tiles (overview, tissue, layout, hash): {whole - looped[-1]:.1f} s")
    for what, seconds in watch.seconds.items():
        print(f"{what}: {seconds:.1f} s of its threads, {100 * seconds / drawn:.1f} % of the time of the tiles")
    timed = [i for i in watch.bare_s if i in watch.drawn_s]
    share = sum(watch.bare_s[i] for i in timed) / sum(watch.drawn_s[i] for i in timed) if timed else float("nan")
    print(f"bare network on {len(timed)} tiles in memory: {100 * share:.1f} % of the time that they took")
    print(f"memory: {before:.0f} MiB before, {peak:.0f} MiB at the peak; maps {stored / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
