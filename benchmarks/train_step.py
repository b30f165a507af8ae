"""Benchmark of one training step: the bare convolutions on the same tensors, and what the objective adds to them.

    python benchmarks/train_step.py --threads 1 --repeats 5

For each setting the floor is forward and backward of encoder, fusion network and decoders, without latent draws and
likelihood, in the precision and memory format of the step. The step is objective, backward and optimiser. Both are the
least of the repeats, taken in turn within one process. Prints a table and the peak memory.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable

import numpy as np
import pyro
import torch

from superst_monai.engines.memory import keep_memory
from superst_monai.engines.prepare import parameter_groups
from superst_monai.model.generative import Batch
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.labels import draw_spots

SETTINGS = {
    "depth 5, patch 256, batch 4": {"depth": 5, "side": 256, "size": 4, "spot_px": 6.4},
    "depth 6, patch 768, batch 3": {"depth": 6, "side": 768, "size": 3, "spot_px": 25.6},
    "default, patch 96, batch 8": {"depth": 5, "side": 96, "size": 8, "spot_px": 6.4},
}


def random_batch(side: int, size: int, spot_px: float, n_genes: int, share: float) -> Batch:
    """Patches of noise with spots two diameters apart, whose counts have about `share` above 0."""
    rng = np.random.default_rng(0)
    centres = np.arange(spot_px, side - spot_px, 2 * spot_px)
    x, y = (axis.ravel() for axis in np.meshgrid(centres, centres))
    label = torch.from_numpy(draw_spots(x, y, spot_px / 2, (side, side)))
    labels = torch.stack([torch.where(label > 0, label + i * len(x), 0) for i in range(size)])
    n_spots = size * len(x)
    mean = rng.gamma(0.3, 1.0, n_genes)
    mean *= np.log(1 / (1 - share)) / mean.mean()
    drawn = torch.from_numpy(rng.poisson(mean, (n_spots, n_genes)).astype(np.float32))
    counts = drawn.to_sparse().coalesce()  # as the loader gives them
    image = torch.rand(size, 3, side, side) * 1.8 - 0.9
    section = torch.zeros(n_spots, dtype=torch.int64)
    occluded = torch.zeros(size, 1, side, side, dtype=torch.bool)
    return Batch(image, labels, counts, section, occluded, torch.ones(n_spots))


def bare(network: FusionVAE, image: torch.Tensor, mixed: bool) -> None:
    """Forward and backward of the networks alone."""
    model, guide = network.generative, network.guide
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        h = model.decode([mean for mean, _ in guide.encoder(image)])
        outputs = [*model.image_decoder(h), *model.expression_decoder(h)]
    sum(part.sum() for part in outputs).backward()


def least(repeats: int, *tasks: Callable[[], None]) -> list[float]:
    """Least wall-clock of each task [s], taken in turn."""
    best = [float("inf")] * len(tasks)
    for _ in range(repeats + 1):
        for i, task in enumerate(tasks):
            started = time.perf_counter()
            task()
            best[i] = min(best[i], time.perf_counter() - started)
    return best


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--genes", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=0.1, help="of the counts that are above 0")
    parser.add_argument("--metagenes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument(
        "--system-memory", action="store_true", help="leave freed memory to the C library, which training does not"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.system_memory:
        keep_memory()
    pyro.enable_validation(False)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {given.threads} thread(s)")
    print(
        "| setting | K | spots | bare float32 [s] | bare bfloat16 [s] | step bfloat16 [s] | of bare | of bare float32 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in given.settings:
        shape = dict(SETTINGS[name])
        depth = int(shape.pop("depth"))
        batch = random_batch(**shape, n_genes=given.genes, share=given.share)  # type: ignore[arg-type]
        for k in given.metagenes:
            torch.manual_seed(0)
            network = FusionVAE(given.genes, n_metagenes=k, depth=depth, n_patches=40, mixed_precision=True)
            optimizer = torch.optim.AdamW(parameter_groups(network, 1e-3), fused=True)

            def step(
                network: FusionVAE = network, optimizer: torch.optim.Optimizer = optimizer, batch: Batch = batch
            ) -> None:
                optimizer.zero_grad()
                network(batch.image, batch)["loss"].backward()
                optimizer.step()

            def floor(mixed: bool, network: FusionVAE = network, batch: Batch = batch) -> None:
                network.zero_grad()
                bare(network, batch.image, mixed)

            single, mixed, whole = least(given.repeats, lambda: floor(False), lambda: floor(True), step)
            print(
                f"| {name} | {k} | {len(batch.counts)} | {single:.3f} | {mixed:.3f} | {whole:.3f} "
                f"| {whole / mixed:.2f} | {whole / single:.2f} |",
                flush=True,
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
