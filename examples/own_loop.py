"""Trains a binary network in a plain PyTorch loop, without Hydra and without a configuration.

python examples/own_loop.py
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bnn_exp import BinaryLinear, HyperMask, binarize, binary_parameters, real_parameters, verify_binary
from bnn_exp.data.sources import read

EPOCHS, BATCH = 20, 64


class Network(nn.Module):
    """An MLP of one-bit weights: 64 pixels, two hidden layers of 128 neurons, 10 classes."""

    def __init__(self):
        super().__init__()
        self.first = BinaryLinear(64, 128)
        self.hidden = BinaryLinear(128, 128, binary_input=True)
        self.last = BinaryLinear(128, 10, binary_input=True)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in (128, 128, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels, uint8 [batch, 1, 8, 8], to logits, float32 [batch, 10]."""
        h = binarize(self.norms[0](self.first(pixels.flatten(1))))
        h = binarize(self.norms[1](self.hidden(h)))
        return self.norms[2](self.last(h))


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns images, uint8 [samples, 1, 8, 8], and labels, int64 [samples], as tensors."""
    return torch.from_numpy(images), torch.from_numpy(labels)


def main() -> None:
    torch.manual_seed(0)
    digits = read("digits")
    images, labels = tensors(digits.train_images, digits.train_labels)
    test_images, test_labels = tensors(digits.test_images, digits.test_labels)

    network = Network()
    whole = len(images) // BATCH * BATCH  # the last samples of an epoch make no whole batch
    steps = EPOCHS * (whole // BATCH)
    bits = HyperMask(list(binary_parameters(network)), delta=0.1, mask="top", schedule="geometric", total_steps=steps)
    reals = torch.optim.Adam([parameter for _, parameter in real_parameters(network)], lr=0.01)

    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images))[:whole].split(BATCH):
            network.zero_grad()
            cross_entropy(network(images[batch]), labels[batch]).backward()
            bits.step()  # flips bits
            reals.step()  # trains BatchNorm

    network.eval()
    accuracy = (network(test_images).argmax(1) == test_labels).float().mean().item()
    print(f"test accuracy {accuracy:.1%}, ones per layer {verify_binary(network)}")


if __name__ == "__main__":
    main()
