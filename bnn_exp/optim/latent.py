"""The baseline: real latent weights, trained by the usual optimizers straight through the threshold that makes them bits."""

from dataclasses import asdict

from bnn_exp.nn import latent_parameters, named_bits
from bnn_exp.nn.binary import quantize
from bnn_exp.optim import eager
from bnn_exp.optim.rule import Trained
from bnn_exp.optim.schedules import factor


class _Latent(Trained):
    """What makes a torch optimizer one of latents: a scheduled learning rate, and `flips`, the bits that changed by its steps.

    A network of float weights has no bits (`bits=False`).
    """

    def _begin(self, schedule: str, total_steps: int | None, bits: bool) -> None:
        factor(schedule, 0, total_steps)
        for group in self.param_groups:
            group |= {"full_lr": group["lr"], "schedule": schedule, "total_steps": total_steps, "steps": 0}
        self.bits = bits
        self.flips = self.no_flips() if bits else []

    @classmethod
    def of(cls, settings, network, batch_size, total_steps, seed):
        """The optimizer that `settings` describe, for the latents or floats of a network."""
        hyper = {name: value for name, value in asdict(settings).items() if name != "name"}
        bits = any(True for _ in named_bits(network))
        return cls([weight for _, weight in latent_parameters(network)], **hyper, total_steps=total_steps, bits=bits)

    @property
    def state_bytes(self) -> int:
        """As for every rule, and the latents themselves, which are no bits."""
        return super().state_bytes + sum(p.numel() * p.element_size() for p in self.tensors())

    @property
    def strengths(self) -> dict[str, float | None]:
        """The learning rate that the last step used; there is no δ."""
        return {"delta": None, "lr": self.param_groups[0]["lr"]}

    def step(self, closure=None):
        """One step of the torch optimizer at the scheduled learning rate."""
        for group in self.param_groups:
            group["lr"] = group["full_lr"] * factor(group["schedule"], group["steps"], group["total_steps"])
            group["steps"] += 1
        before = [quantize(p.detach()) for p in self.tensors()] if self.bits else []
        loss = super().step(closure)
        for flips, old, p in zip(self.flips, before, self.tensors(), strict=False):
            flips += (quantize(p.detach()) != old).sum()
        return loss


class LatentSGD(_Latent, eager.SGD):
    """SGD on latent weights."""

    def __init__(self, params, lr=0.1, momentum=0.9, *, schedule="constant", total_steps=None, bits=True):
        super().__init__(params, lr, momentum=momentum)
        self._begin(schedule, total_steps, bits)


class LatentAdam(_Latent, eager.Adam):
    """Adam on latent weights (Kingma & Ba, arXiv 1412.6980)."""

    def __init__(self, params, lr=0.01, *, schedule="constant", total_steps=None, bits=True):
        super().__init__(params, lr)
        self._begin(schedule, total_steps, bits)
