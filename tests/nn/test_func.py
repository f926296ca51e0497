"""Tests of torch.func on binary layers: per-sample gradients, functional calls and ensembles, against plain autograd."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, stack_module_state, vmap

from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG
from bnn_exp.nn import BinaryConv2d, BinaryLinear, binarize

LABELS = torch.tensor([0, 2, 1, 0, 3])


def pixels(*shape):
    return torch.randint(0, 256, (len(LABELS), *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def evaluated(network):
    """Returns the network in evaluation mode, where BatchNorm treats each sample alone, with random running statistics."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(1, 9, generator=generator)
    return network.eval()


def codes_net():
    return BNCVLNet((3, 8, 8), 4, (4, 4), 1, dense=(8,), weights="bits", activation_bits=8)


IMAGES = pixels(3, 8, 8).double() / 255  # float64: rounding must not change which pixel max-pooling takes
NETWORKS = {
    "mlp": (lambda: evaluated(MLP(16, 4, 8, 3)), pixels(1, 4, 4)),
    "mlp of one": (lambda: evaluated(MLP(16, 4, 8, 3, encoding="boolean", window=None)), pixels(1, 4, 4)),
    "mlp of halves": (lambda: evaluated(MLP(16, 4, 8, 2, encoding="centred")), pixels(1, 4, 4)),
    "vgg": (lambda: evaluated(VGG((3, 8, 8), 4, channels=(4,), convolutions=2)).double(), IMAGES),
    "bncvl": (lambda: BNCVLNet((3, 8, 8), 4, (4, 4), 1, dense=(8,), normalization="sample", weights="bits").double(), IMAGES),
    "codes": (lambda: evaluated(codes_net()).double(), IMAGES),
    "latent": (lambda: BNCVLNet((3, 8, 8), 4, (4, 4), 1, dense=(8,), normalization="sample").double(), IMAGES),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_per_sample_gradients_are_those_of_a_loop(name):
    make, x = NETWORKS[name]
    torch.manual_seed(3)
    network = make()
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())

    def loss(parameters, image, label):
        return F.cross_entropy(functional_call(network, (parameters, buffers), (image[None],)), label[None])

    found = vmap(grad(loss), (None, 0, 0))(parameters, x, LABELS)
    for i, label in enumerate(LABELS):
        network.zero_grad()
        F.cross_entropy(network(x[i : i + 1]), label[None]).backward()
        for key, parameter in parameters.items():
            torch.testing.assert_close(found[key][i], parameter.grad, msg=key)
    assert sum(g.abs().sum() for g in found.values()) > 0


@pytest.mark.parametrize(("make", "x"), NETWORKS.values(), ids=NETWORKS)
def test_an_ensemble_is_each_of_its_networks(make, x):
    torch.manual_seed(4)
    networks = [make() for _ in range(3)]
    parameters, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")
    found = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([network(x) for network in networks]))


def test_many_rows_are_multiplied_as_one_batch():
    """Some processors use the product in small integers for 128 rows and more."""
    layer, x = BinaryLinear(32, 8, binary_input=True), torch.randn(40, 5, 32, generator=torch.Generator().manual_seed(0)).sign()
    torch.testing.assert_close(vmap(layer)(x), torch.stack([layer(rows) for rows in x]))
    torch.testing.assert_close(vmap(layer, in_dims=1)(x), torch.stack([layer(rows) for rows in x.unbind(1)]))


def test_the_gradient_of_a_batch_of_functions_is_that_of_their_sum():
    convolution, x = BinaryConv2d(2, 3), torch.randn(4, 1, 2, 6, 6)

    def total(weight, x):
        return vmap(lambda image: binarize(functional_call(convolution, {"weight": weight}, (image,)) / 9))(x).sum()

    found = grad(total)(convolution.weight.detach(), x)
    binarize(convolution(x.flatten(0, 1)) / 9).sum().backward()
    torch.testing.assert_close(found, convolution.weight.grad)


@pytest.mark.parametrize("window", [1.0, None])
def test_the_binary_activation_under_transforms(window):
    x = torch.tensor([[-2.0, -0.5, 0.0], [0.5, 1.0, 3.0]])
    inside = (x.abs() <= 1).float() if window else torch.ones_like(x)
    assert vmap(grad(lambda row: binarize(row, window=window).sum()))(x).equal(inside)
    assert vmap(lambda row: binarize(row), in_dims=1, out_dims=1)(x).equal(binarize(x))
