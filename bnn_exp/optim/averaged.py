"""Averages of networks over training (EMA, SWA) that stay binary."""

import torch
from torch import nn
from torch.optim import swa_utils

from bnn_exp.nn import binary_parameters


class AveragedModel(swa_utils.AveragedModel):
    """Does what torch's class does for all parameters that are no bits, such as those of BatchNorms and latents.

    An average of bits is no bit: bits are those of the network at the last update. Arguments are torch's:

        ema = AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
        ema.update_parameters(network)  # after each step
    """

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the network as it is now into the average."""
        super().update_parameters(model)
        for (_, mine), (_, bits) in zip(binary_parameters(self.module), binary_parameters(model), strict=True):
            mine.copy_(bits)
