"""The manual of an exported network: what is done before and after it, in numbers that other programs can read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch

from superst_monai.inference.deploy.formats import LEAST_SIDES, multiple_of
from superst_monai.inference.posterior import halo_of
from superst_monai.inference.rates import mean_rates
from superst_monai.inference.run import Run
from superst_monai.transforms.balance import GLASS_LEVEL
from superst_monai.transforms.crops import WHITE
from superst_monai.transforms.finish import IMAGE_RANGE


def gene_table(run: Run) -> pd.DataFrame:
    """What one unit of each metagene's scaled activity stands for in UMIs, `(G, 1 + K)`: `gene_id`, `metagene_1` ...

    It is exp(log r_kg + l_g) of the posterior means; an unknown condition counts as the mean of its levels.

    Args:
        run: whose genes they are; all its covariates are taken as unknown.
    """
    log_rate, logit = mean_rates(run.network, dict.fromkeys(run.covariates))  # (K, G), (G,)
    rates = np.exp(log_rate.astype(np.float64) + logit).T  # (G, K)
    columns = {f"metagene_{k + 1}": rates[:, k] for k in range(rates.shape[1])}
    return pd.DataFrame({"gene_id": run.gene_ids, **columns}, index=pd.Index(run.genes, name="gene"))


def manual(run: Run, content: bytes, metadata: Mapping[str, Any], *, file: str, genes: str, how: str) -> dict[str, Any]:
    """Everything that must be known to use an exported network, ready for JSON.

    Args:
        run: that it comes from.
        content: of the exported file.
        metadata: of the run's bundle.
        file: name of the exported file.
        genes: name of the file of `gene_table`.
        how: Python that runs the network.
    """
    multiple = multiple_of(run.network)
    return {
        "file": file,
        "sha256": hashlib.sha256(content).hexdigest(),
        "run_sha256": run.weights_sha256,
        "run": how.replace("FILE", repr(file)),
        "mpp": run.mpp,
        "metagenes": run.network.arch.n_metagenes,
        "active": run.network.generative.active.tolist(),
        "side_multiple": multiple,
        "least_side": LEAST_SIDES * multiple,
        "halo_px": halo_of(run.network.arch.depth).whole,
        "steps": _steps(run, genes, multiple),
        "genes_file": genes,
        "conditions": dict.fromkeys(run.covariates),
        "versions": {"superst-monai": version("superst-monai"), "torch": torch.__version__},
        **{key: metadata.get(key) for key in ("network_data_format", "intended_use", "limits")},
    }


def _steps(run: Run, genes: str, multiple: int) -> list[dict[str, Any]]:
    """What is done before and after the network, in this order."""
    return [
        {
            "step": "read",
            "do": "read RGB, 8 bits a channel, transparent pixels on white, resampled to mpp by the mean over areas",
            "mpp": run.mpp,
        },
        {"step": "tissue", "do": "mark the stained tissue on the whole slide; any method will do"},
        {
            "step": "glass",
            "do": "find the colour of the empty glass, once a slide: of an overview (8 um per px, or mpp if coarser) "
            "take pixels that are not tissue and whose largest channel is at least not_black. Bright are those with "
            "smallest channel >= darkest, largest - smallest channel <= tint and largest channel - green <= pink; if "
            "those of them whose smallest channel is below white are at least tinted_share of all taken, only those. "
            "The level is the mean of the channels; keep bright pixels with level >= their level_percentile - depth, "
            "of these those whose unevenness (largest - smallest level in 3 x 3) is <= their unevenness_percentile. "
            "The glass is the median of each channel over what is left, and white where nothing is bright",
            "white": WHITE,
            **_GLASS,
        },
        {
            "step": "balance",
            "do": "of each channel: value = min(white, round(value * glass_level / glass)), halves to even",
            "glass_level": GLASS_LEVEL,
            "white": WHITE,
        },
        {
            "step": "pad",
            "do": "beyond the slide all channels are value; sides are multiples of side_multiple, at least least_side. "
            "Of a tile the outer halo_px are not to be trusted: read it with such a margin",
            "value": WHITE,
        },
        {
            "step": "scale",
            "do": "x = value / white * (high - low) + low, float32, (B, 3, H, W)",
            "white": WHITE,
            "low": -IMAGE_RANGE,
            "high": IMAGE_RANGE,
        },
        {
            "step": "network",
            "do": "pred (B, K, H, W), float32: activity of each metagene times the size of the pixel [1/px]",
        },
        {"step": "cover", "do": "set pred to 0 where there is no tissue"},
        {
            "step": "genes",
            "do": f"expected UMIs of a gene in a pixel = sum over k of pred[k] * column metagene_(k + 1) of {genes}, "
            "at the mean of the posterior; sums over pixels are sums of these",
        },
    ]


_GLASS = {
    "not_black": 60,
    "darkest": 150,
    "tint": 60,
    "pink": 25,
    "tinted_share": 0.05,
    "depth": 25,
    "level_percentile": 99,
    "unevenness_percentile": 10,
}
"""Numbers of `balance.section_glass` and `tissue.glass_colour`, in words that stand alone."""
