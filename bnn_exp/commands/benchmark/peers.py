"""The MLP of a configuration in other libraries of binary networks: brevitas and bitorch, where they are installed.

Each library's own layers take the place of ours: bipolar weights and activations, straight-through gradients in the window 1,
torch's BatchNorm between them, latent weights in float32, trained by Adam. The first layer takes pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.commands.benchmark.timing import time_calls
from bnn_exp.commands.benchmark.torch_loops import Loop, float_network
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.deploy.load import pack_network
from bnn_exp.training.setup import first_network

BATCHES = (1, 1024)  # the numbers of images whose answers are timed
PACKED, FP32 = "packed", "torch fp32"


def named(settings: Settings) -> tuple[str, ...]:
    """Returns the names of the libraries that can build the network of the settings."""
    return tuple(LIBRARIES) if settings.model.name == "mlp" else ()


def is_installed(library: str) -> bool:
    """Returns True if the package of a library is installed."""
    return find_spec(library) is not None


def loop(library: str, settings: Settings, data: Dataset) -> Loop:
    """Returns a training loop with the layers of a library.

    Args:
        data: the result of `torch_loops.in_floats`.
    """
    network = mlp(library, settings, data)
    return Loop(settings, network, data, [torch.optim.Adam(network.parameters())])


def mlp(library: str, settings: Settings, data: Dataset) -> nn.Module:
    """Returns the MLP of the settings with the layers of a library, on the device of the data."""
    torch.manual_seed(settings.seed)
    hidden = [settings.model.hidden_size] * (settings.model.num_layers - 1)
    sizes = [prod(data.image_shape), *hidden, len(data.classes)]
    layers = LIBRARIES[library](sizes)
    return nn.Sequential(nn.Flatten(), *layers).to(data.train.labels.device)


def answers(libraries: Sequence[str], settings: Settings, data: Dataset, rounds: int) -> list[dict[str, Any]]:
    """Measures the seconds of an answer of an untrained network, packed, in fp32 by torch, and by each of the libraries.

    The packed network takes pixels, uint8; the others take float32.

    Returns:
        For each batch size and way a dictionary with `batch`, `way`, the seconds (`median`, the quartiles `low` and `high`),
        and `speedup`, the seconds divided by those of the packed network. An empty list without libraries.
    """
    if not libraries:
        return []
    networks = {
        PACKED: pack_network(first_network(settings, data).eval(), data.image_shape),
        FP32: float_network(settings, data),
        **{name: mlp(name, settings, data) for name in libraries},
    }
    rows = []
    for batch in BATCHES:
        pixels = torch.randint(256, (batch, *data.image_shape), dtype=torch.uint8)
        calls = {
            way: partial(_answer, network.eval(), pixels if way == PACKED else pixels / 255)
            for way, network in networks.items()
        }
        times = time_calls(calls, pixels.device, rounds)
        rows += [
            {"batch": batch, "way": way, **t, "speedup": t["median"] / times[PACKED]["median"]} for way, t in times.items()
        ]
    return rows


@torch.inference_mode()
def _answer(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)


def _of_brevitas(sizes: list[int]) -> Iterator[nn.Module]:
    from brevitas.nn import QuantIdentity, QuantLinear
    from brevitas.quant.binary import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst

    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        if layer:
            yield QuantIdentity(act_quant=SignedBinaryActPerTensorConst, scaling_const=1.0)
        yield QuantLinear(inputs, outputs, bias=False, weight_quant=SignedBinaryWeightPerTensorConst, weight_scaling_const=1.0)
        yield nn.BatchNorm1d(outputs)


def _of_bitorch(sizes: list[int]) -> Iterator[nn.Module]:
    from bitorch.layers import QLinear

    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        activation = "sign" if layer else "identity"
        yield QLinear(inputs, outputs, bias=False, input_quantization=activation, weight_quantization="sign")
        yield nn.BatchNorm1d(outputs)


LIBRARIES: dict[str, Callable[[list[int]], Iterator[nn.Module]]] = {"brevitas": _of_brevitas, "bitorch": _of_bitorch}
