"""The inferer that lets MONAI's evaluator, and so a bundle's `inference.yaml`, drive `predict` or run the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from superst_monai.errors import RunError
from superst_monai.inference.canvas import open_source
from superst_monai.inference.run import attach_network
from superst_monai.inference.slide_map import predict
from superst_monai.model.objective import FusionVAE
from superst_monai.types import Key


class PosteriorMapsInferer(Inferer):
    """Writes posterior maps of the source that it is called with; of images in memory it gives the scaled activity.

    Args:
        run_dir: run folder, whose genes, resolution and record belong to the network.
        out: `.zarr` folder to write.
        slide_mpp: resolution of a slide whose file does not state it [um per level-0 px].
        options: keyword arguments of `superst_monai.inference.slide_map.predict`.
    """

    def __init__(self, run_dir: str | Path, out: str | Path, *, slide_mpp: float | None = None, **options: Any) -> None:
        """Keep the arguments; nothing is read before the call."""
        self.run_dir = Path(run_dir)
        self.out = out
        self.slide_mpp = slide_mpp
        self.options = options

    def __call__(self, inputs: Any, network: Callable[..., Any], *_: Any, **__: Any) -> Path | Tensor:
        """Predict.

        Args:
            inputs: path of a section's `.zarr` store or of a slide; or images in memory `(B, 3, H, W)`, as
                `transforms.network_image.NetworkImaged` gives them.
            network: with the run's weights; for images also an export of it.

        Returns:
            Path of the maps; of images the scaled activity at the posterior mean `(B, K, H, W)` [1/px].

        Raises:
            RunError: the network is no FusionVAE, no output is named, or whatever `predict` refuses.
        """
        if isinstance(inputs, Tensor):
            activity: Tensor = network(inputs)
            return activity
        if not isinstance(network, FusionVAE):
            raise RunError(
                f"posterior maps need the FusionVAE of the run, got {type(network).__name__}; "
                "keep network_def of configs/inference.yaml."
            )
        faults = [f"{name} names no file" for name, value in (("source", inputs), ("out", self.out)) if not str(value)]
        if faults:
            raise RunError(
                f"prediction needs a source and an output, but {', '.join(faults)}; pass --source X --out Y."
            )
        with open_source(inputs, slide_mpp=self.slide_mpp) as source:
            run = attach_network(self.run_dir, network)
            return predict(run, source, self.out, source_path=str(inputs), **self.options)


def prepare_source(
    batch: Mapping[str, Any], device: str | torch.device | None = None, non_blocking: bool = False, **_: Any
) -> tuple[str | Tensor, None]:
    """Take the one source of a batch: a path, which stays where it is, or images in memory, which move to `device`."""
    images = batch[Key.IMAGE.value]
    if isinstance(images, Tensor):
        return images.to(device=device, non_blocking=non_blocking), None
    [source] = images
    return str(source), None
