"""Tests of VGG-small: its layers against torch's, its sizes, and that it learns without latent weights."""

import pytest
import torch
import torch.nn.functional as F

from bnn_exp.models.vgg import VGG
from bnn_exp.nn import BinaryConv2d, verify_binary


@pytest.mark.parametrize(("encoding", "low", "high"), [("boolean", 0, 1), ("bipolar", -1, 1), ("centred", -0.5, 0.5)])
def test_a_convolution_multiplies_by_the_values_and_returns_their_gradient(encoding, low, high):
    torch.manual_seed(0)
    layer = BinaryConv2d(3, 5, 3, encoding)
    values = torch.where(layer.weight.detach() == 1, float(high), float(low)).requires_grad_()
    x, grad = torch.randn(2, 3, 6, 7), torch.randn(2, 5, 6, 7)
    expected = F.conv2d(x, values, padding=1)
    expected.backward(grad)
    y = layer(x)
    y.backward(grad)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.weight.grad, values.grad)
    with pytest.raises(ValueError, match="odd"):
        BinaryConv2d(3, 5, 4)


@pytest.mark.slow
def test_torch_compile_takes_the_whole_network_as_one_graph():
    torch.manual_seed(0)
    network = VGG((3, 16, 16), 10, channels=(8, 16), convolutions=1)
    x, found = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), []
    for forward in (network, torch.compile(network, backend="eager", fullgraph=True)):
        network.zero_grad()
        y = forward(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in network.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_network_of_the_papers():
    torch.manual_seed(0)
    network = VGG((3, 32, 32), 10)
    sizes = [3 * 128, 128 * 128, 128 * 256, 256 * 256, 256 * 512, 512 * 512]
    assert sum(p.numel() for name, p in network.named_parameters() if "norm" not in name) == 9 * sum(sizes) + 512 * 16 * 10
    seen = []
    for norm in network.norms:
        norm.register_forward_hook(lambda _m, _i, y: seen.append(tuple(y.shape[1:])))
    assert network(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)).shape == (2, 10)
    assert seen == [(128, 32, 32), (128, 16, 16), (256, 16, 16), (256, 8, 8), (512, 8, 8), (512, 4, 4)]
    assert sum(verify_binary(network).values()) > 0


@pytest.mark.parametrize("arguments", [(), ("optimizer=hypermask_factored",)])
def test_it_learns_from_the_command_line(bnn_train, summary, arguments):
    small = ("model=vgg", "model.channels=[16,32]", "trainer.epochs=5", "trainer.batch_size=64", "dataset.limit=400")
    done = bnn_train(*small, *arguments)
    assert done.code == 0, done.err
    assert summary(done.runs[0])["test_accuracy"] > 30  # a network that guesses reaches 10
    assert summary(done.runs[0])["binary_verified"]


def test_images_too_small_for_its_pools(bnn_train, tmp_path):
    done = bnn_train("model=vgg", "model.channels=[8,8,8,8]")
    assert done.code == 2 and "8×8 pixels" in done.err and "Traceback" not in done.err and list(tmp_path.iterdir()) == []
