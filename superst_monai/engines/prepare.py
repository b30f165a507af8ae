"""From a batch to the network's call and from its answer to the loss: the functions that MONAI's engines plug in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from superst_monai.model.evidence import spot_log_likelihood
from superst_monai.model.generative import Batch
from superst_monai.model.objective import FusionVAE
from superst_monai.types import Key


def prepare_batch(
    batch: Mapping[str, Tensor], device: str | torch.device | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[Batch], dict[str, Any]]:
    """Move a collated batch to the device and lay it out as the arguments of `FusionVAE.forward`."""
    keys = (Key.IMAGE, Key.LABEL, Key.COUNTS, Key.SPOT_SECTION, Key.OCCLUDED, Key.SHARE)
    patches = Batch(*(batch[key].to(device, non_blocking=non_blocking) for key in keys))
    return patches.image, patches.label, (patches,), {}


class EvidenceInferer(Inferer):
    """What the evaluator asks the network: the log-likelihood of each spot of a batch instead of the objective."""

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **_: Any) -> dict[str, Tensor]:
        """Log-likelihood of each spot `(S,)` [nat] and the share of its UMIs that it is of `(S,)`."""
        batch: Batch = args[0]
        return {"loglik": spot_log_likelihood(cast(FusionVAE, network), batch), "share": batch.share}


def objective(pred: Mapping[str, Tensor], _: Tensor) -> Tensor:
    """The loss that the trainer minimises: -ELBO per patch [nat]."""
    return pred["loss"]


def loss_of(output: Mapping[str, Any]) -> float:
    """Loss of a trainer's output, as a number."""
    return float(output["loss"].detach())


def parameter_groups(
    network: FusionVAE, learning_rate: float, *, globals_factor: float = 0.1, baselines_factor: float = 5.0
) -> list[dict[str, Any]]:
    """Parameters by learning rate: network, globals (profiles, effects, their scales), baselines.

    Baselines learn 5x as fast as the network, as in xfuse (doi:10.1038/s41587-021-01075-3). Globals learn slower, not
    2x as fast as there: they start from a factorisation, and steps of that size make the many profiles that the data
    hardly determine wander off before the activities have been learnt.
    """
    model, guide = network.generative, network.guide
    baselines: Sequence[nn.Parameter] = [model.log_rate, model.logit]
    parts = (
        guide.profile,
        guide.rate_effect,
        guide.logit_effect,
        guide.condition_logits,
        model.log_sigma,
        model.log_rho,
    )
    widths: Sequence[nn.Parameter] = [model.log_tau, *(p for part in parts for p in part.parameters())]
    apart = {id(p) for p in (*baselines, *widths)}
    rest = [p for p in network.parameters() if id(p) not in apart]
    return [
        {"params": rest, "lr": learning_rate},
        {"params": widths, "lr": globals_factor * learning_rate},
        {"params": baselines, "lr": baselines_factor * learning_rate},
    ]


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether convolutions run faster in bfloat16: on GPUs that have it, and on CPUs with its instructions."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
