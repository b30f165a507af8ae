"""How well the model tells counts that it was not trained on: log-likelihood of each spot under a draw of the guide."""

from __future__ import annotations

from pyro import poutine
from torch import Tensor

from superst_monai.model.generative import Batch
from superst_monai.model.objective import FusionVAE
from superst_monai.types import Site


def spot_log_likelihood(network: FusionVAE, batch: Batch) -> Tensor:
    """Log-likelihood of the counts of each spot, with all latent variables drawn once from the guide.

    Args:
        network: model and guide.
        batch: patches; `share` says which part of its UMIs the counts of a spot hold.

    Returns:
        `(S,)` [nat]; its sum over the spots is the expression part of the objective.
    """
    n_spots = batch.counts.shape[0]
    if not n_spots:
        return batch.share.new_zeros(0)
    guide = poutine.trace(network.guide).get_trace(batch, network.n_patches, network.generative)
    model = poutine.trace(poutine.replay(network.generative, trace=guide)).get_trace(batch, network.n_patches)
    model.compute_log_prob(lambda name, _: name == Site.COUNTS)
    found: Tensor = model.nodes[Site.COUNTS]["log_prob"]
    return found
