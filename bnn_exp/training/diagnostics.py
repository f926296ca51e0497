"""Statistics of flips and gradients, for each binary tensor and epoch (`trainer.diagnostics`)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.nn import binary_layers, named_bits

OBSERVED = ("before", "moved", "gradients", "squares")  # the attributes that are dicts by the names of the tensors


class Diagnostics:
    """An observer of the bits of a network, and of the gradients of the parameters that hold bits or latent weights.

    It keeps two bools and one float per weight. Their tensors keep their addresses, because a recorded step writes to them.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.parameters = dict(network.named_parameters())
        self.before = self._bits()  # the bits at the beginning of the epoch
        device = next(network.parameters()).device
        self.steps = torch.zeros((), dtype=torch.int64, device=device)  # the steps of this epoch
        self.moved = {name: torch.zeros_like(bits) for name, bits in self.before.items()}  # True: flipped in this run
        self.gradients = {name: torch.zeros_like(self.parameters[name]) for name in self.before}  # Σ g over this epoch
        self.squares = {name: g.new_zeros(()) for name, g in self.gradients.items()}  # Σ ‖g‖² over this epoch

    def _begin(self) -> None:
        for t in (self.steps, *self.gradients.values(), *self.squares.values()):
            t.zero_()
        for name, bits in self._bits().items():
            self.before[name].copy_(bits)

    def _bits(self) -> dict[str, Tensor]:
        return {name: bits.detach() > 0.5 for name, bits in named_bits(self.network)}

    @torch.no_grad()
    def step(self) -> None:
        """Observes one step: call this method after the step, before its gradients are freed."""
        self.steps += 1
        for name, bits in self._bits().items():
            self.moved[name] |= bits != self.before[name]
            g = self.parameters[name].grad
            if g is not None:
                self.gradients[name] += g
                self.squares[name] += g.square().sum()

    def epoch(self, flips: Sequence[Tensor]) -> dict[str, dict[str, float]]:
        """Ends an epoch, and returns its statistics; each is a dict by the names of the tensors.

        - `flip_ratio`: flips per weight and step.
        - `flips_back`: the fraction of the flips that another flip of this epoch undid, (flips − net change) / flips.
        - `never_flipped`: the fraction of the weights that have not flipped once in the whole run.
        - `ones_ratio`: the fraction of ones.
        - `gradient_snr`: the signal-to-noise ratio of one step's gradient, ‖E g‖² / tr Cov g over the steps of the epoch,
          unbiased. It is the inverse of the simple noise scale in steps (McCandlish et al. 2018, arXiv 1812.06162). None after
          a single step.

        Args:
            flips: the number of flips of each tensor in this epoch, in the order of `named_bits`.
        """
        figures: dict[str, dict[str, Any]] = {
            key: {} for key in ("flip_ratio", "flips_back", "never_flipped", "ones_ratio", "gradient_snr")
        }
        for count, (name, bits) in zip(map(int, flips), self._bits().items(), strict=True):
            net = int((bits != self.before[name]).sum())
            figures["flip_ratio"][name] = count / bits.numel() / max(int(self.steps), 1)
            figures["flips_back"][name] = (count - net) / max(count, 1)
            figures["never_flipped"][name] = 1 - int(self.moved[name].sum()) / bits.numel()
            figures["ones_ratio"][name] = int(bits.sum()) / bits.numel()
            figures["gradient_snr"][name] = self._signal_to_noise(name)
        self._begin()
        return figures

    def _signal_to_noise(self, name: str) -> float | None:
        steps = int(self.steps)
        if steps < 2:
            return None
        mean_square = float(self.squares[name]) / steps
        square_of_mean = float((self.gradients[name] / steps).double().square().sum())
        noise = (mean_square - square_of_mean) * steps / (steps - 1)
        return (square_of_mean - noise / steps) / noise if noise > 0 else None

    def state(self) -> dict[str, Any]:
        """Returns the observations so far, as tensors and plain values."""
        return {"steps": int(self.steps), **{name: getattr(self, name) for name in OBSERVED}}

    def load(self, state: dict[str, Any]) -> None:
        """Restores observations that the method `state` has returned."""
        self.steps.fill_(state["steps"])
        for kind in OBSERVED:
            for name, tensor in getattr(self, kind).items():
                tensor.copy_(state[kind][name])


@torch.no_grad()
def dead_outputs(network: nn.Module, x: Tensor) -> dict[str, int]:
    """Counts the dead outputs of each binary layer: outputs with the same value for all images of `x` [images, …].

    An output is read where the next binary layer reads it, after normalisation, activation and pooling. The outputs of the last
    layer are read at the output of the network. A channel of a convolution is dead if all its positions have one value.

    Args:
        x: at least two images.

    Returns:
        The number of dead outputs, by the name of the layer's weight.
    """
    inputs: list[tuple[str, int]] = []

    def note(name: str) -> Any:
        return lambda _module, arguments: inputs.append((name, _constant(arguments[0])))

    layers = ((f"{name}.weight" if name else "weight", layer) for name, layer in binary_layers(network))
    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
    was_training = network.training
    try:
        last = _constant(network.eval()(x))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    names, counts = [name for name, _ in inputs], [count for _, count in inputs[1:]]
    return dict(zip(names, [*counts, last], strict=True))


def _constant(x: Tensor) -> int:
    rows = x.transpose(0, 1).flatten(1)
    return int((rows.amin(1) == rows.amax(1)).sum())
