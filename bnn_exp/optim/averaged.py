"""Averages of a network over its training (EMA, SWA) whose binary weights stay binary."""

import torch
from torch import nn
from torch.optim import swa_utils

from bnn_exp.nn import binary_parameters


class AveragedModel(swa_utils.AveragedModel):
    """An average of all real parameters of a network, such as those of BatchNorms and latent weights.

    An average of bits is not a bit, so each update copies the bits of the network. The arguments are the same as for torch's
    class:

        ema = AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
        ema.update_parameters(network)  # after each step
    """

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Updates the average with the current parameters of the network `model`."""
        super().update_parameters(model)
        for (_, mine), (_, bits) in zip(binary_parameters(self.module), binary_parameters(model), strict=True):
            mine.copy_(bits)
