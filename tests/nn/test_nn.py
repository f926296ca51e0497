"""Tests of binary layers, the binary activation, and the check that weights are bits."""

import copy
import pickle

import pytest
import torch

from bnn_exp.nn import (
    BinaryConv2d,
    BinaryLayer,
    BinaryLinear,
    NotBinary,
    binarize,
    binary_parameters,
    real_parameters,
    verify_binary,
)


@pytest.mark.parametrize(("encoding", "low"), [("boolean", 0.0), ("bipolar", -1.0)])
def test_a_linear_layer_multiplies_by_the_values_and_returns_their_gradient(encoding, low):
    layer = BinaryLinear(5, 3, encoding)
    values = torch.where(layer.weight.detach() == 1, 1.0, low).requires_grad_()
    x, grad = torch.randn(4, 5), torch.randn(4, 3)
    expected = x @ values.T
    expected.backward(grad)
    y = layer(x)
    y.backward(grad)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.weight.grad, values.grad)


@pytest.mark.parametrize("weights", ["bits", "latent", "float"])
@pytest.mark.parametrize("encoding", ["boolean", "bipolar", "centred"])
def test_layers_take_pixels_as_numbers_from_0_to_1(weights, encoding):
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    for layer, x in (
        (BinaryConv2d(3, 4, 3, encoding, weights), pixels),
        (BinaryLinear(75, 4, encoding, weights=weights), pixels.flatten(1)),
    ):
        torch.testing.assert_close(layer(x), layer(x.float() / 255))


@pytest.mark.parametrize(("window", "passed"), [(None, [1, 1, 1, 1, 1]), (1.0, [0, 1, 1, 1, 0]), (0.5, [0, 0, 1, 0, 0])])
def test_the_activation_is_a_step_with_a_straight_through_gradient(window, passed):
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 1.5], requires_grad=True)
    y = binarize(x, "bipolar", window)
    assert y.tolist() == [-1, -1, 1, 1, 1]
    assert binarize(x, "boolean", window).tolist() == [0, 0, 1, 1, 1]
    y.backward(torch.full((5,), 3.0))
    assert x.grad.tolist() == [3 * p for p in passed]


def test_bits_begin_as_fair_coins():
    ones = BinaryLinear(1000, 1000).weight.mean().item()
    assert abs(ones - 0.5) < 5 * 0.5 / 1000  # five standard deviations of a million coins


def test_verification_counts_ones_and_names_what_is_not_a_bit():
    network = torch.nn.Sequential(BinaryLinear(3, 2), torch.nn.BatchNorm1d(2), BinaryLinear(2, 4))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0, 1], [0, 0, 1]]))
        network[2].weight.zero_()
    assert verify_binary(network) == {"0.weight": 3, "2.weight": 0}
    with torch.no_grad():
        network[2].weight[3, 1] = 0.25
    with pytest.raises(NotBinary, match=r"2\.weight\[3, 1\] is 0\.25"):
        verify_binary(network)
    with torch.no_grad():
        network[2].weight[3, 1] = float("nan")
    with pytest.raises(NotBinary, match="nan"):
        verify_binary(network)


def test_a_layer_of_ones_own_is_binary_by_its_class():
    class Mine(BinaryLayer):
        def forward(self, x):
            return x * self.value

    network = torch.nn.Sequential(Mine((7,)), torch.nn.Linear(7, 1))
    for twin in (network, copy.deepcopy(network), copy.deepcopy(network).to(torch.float64)):
        assert [name for name, _ in binary_parameters(twin)] == ["0.weight"]
        assert [name for name, _ in real_parameters(twin)] == ["1.weight", "1.bias"]


def test_a_pickled_network_is_still_binary():
    network = pickle.loads(pickle.dumps(torch.nn.Sequential(BinaryLinear(3, 2))))
    assert [name for name, _ in binary_parameters(network)] == ["0.weight"]


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="boolean, bipolar"):
        BinaryLinear(2, 2, "ternary")


@pytest.mark.parametrize("encoding", ["boolean", "bipolar"])
@pytest.mark.parametrize(("batch", "inputs", "outputs"), [(300, 257, 10), (128, 64, 64), (300, 1, 5), (1, 5, 3), (0, 8, 8)])
def test_a_product_of_bits_is_exact_whatever_computes_it(encoding, batch, inputs, outputs):
    layer = BinaryLinear(inputs, outputs, encoding, binary_input=True)
    x = binarize(torch.randn(batch, inputs), encoding).requires_grad_()
    grad = torch.randn(batch, outputs)
    y = layer(x)
    y.backward(grad)
    values = layer.value.detach()
    assert torch.equal(y, (x.long() @ values.long().T).float())
    torch.testing.assert_close(x.grad, grad @ values)
    torch.testing.assert_close(layer.weight.grad, grad.T @ x.detach())


@pytest.mark.parametrize("encoding", ["boolean", "bipolar", "centred"])
@pytest.mark.parametrize(("batch", "inputs", "outputs"), [(300, 785, 10), (128, 64, 64), (300, 1, 5), (1, 5, 3), (0, 8, 8)])
def test_pixels_stand_for_numbers_from_0_to_1(encoding, batch, inputs, outputs):
    layer = BinaryLinear(inputs, outputs, encoding)
    pixels = torch.randint(0, 256, (batch, inputs), dtype=torch.uint8)
    grad = torch.randn(batch, outputs)
    y = layer(pixels)
    y.backward(grad)
    sums = pixels.double() @ layer.value.detach().double().T
    assert torch.equal(y, sums.float() / 255)
    exact = grad.double().T @ (pixels.double() / 255)
    torch.testing.assert_close(layer.weight.grad.double(), exact, rtol=1e-4, atol=1e-4)
