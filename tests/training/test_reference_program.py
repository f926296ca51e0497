"""Compares training steps with the reference program, written in NumPy from its equations: masks, bits and BatchNorm."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import drawn

from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binary_parameters, real_parameters
from bnn_exp.optim import HyperMask, check_ownership

EPS, MOMENTUM, RATE, DELTA, SEED = 1e-5, 0.1, 0.01, 0.1, 3


def reference_step(weights, norms, x, labels, t):
    """Takes step `t` of the reference program in place, in float64. Returns the mean loss before the step.

    The step: forward pass, backward pass, w ← m̄·w + m·w*, and SGD on the parameters of BatchNorm.
    """
    hidden, normalised, scales = [x], [], []
    for w, norm in zip(weights, norms, strict=True):
        z = hidden[-1] @ w.T
        mean, variance = z.mean(0), z.var(0)
        norm["mean"] += MOMENTUM * (mean - norm["mean"])
        norm["var"] += MOMENTUM * (variance * len(z) / (len(z) - 1) - norm["var"])
        scales.append(1 / np.sqrt(variance + EPS))
        normalised.append((z - mean) * scales[-1])
        hidden.append((normalised[-1] * norm["gamma"] + norm["beta"] >= 0).astype(float))
    logits = hidden[-1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    d = (p - np.eye(10)[labels]) / len(x)  # the gradient of log-softmax (applied twice) and cross-entropy, straight-through
    for i in reversed(range(len(weights))):
        d_gamma, d_beta = (d * normalised[i]).sum(0), d.sum(0)
        d_hat = d * norms[i]["gamma"]
        dz = scales[i] * (d_hat - d_hat.mean(0) - normalised[i] * (d_hat * normalised[i]).mean(0))
        g = dz.T @ hidden[i]
        d = dz @ weights[i]
        m = (drawn(g.size, SEED, i, t) < DELTA).numpy().reshape(g.shape).astype(float)
        assert (abs(g) > 1e-13).all()  # rounding must not decide a sign
        target = (-g >= 0).astype(float)
        weights[i][:] = (1 - m) * weights[i] + m * target
        norms[i]["gamma"] -= RATE * d_gamma
        norms[i]["beta"] -= RATE * d_beta
    return -np.log(p[np.arange(len(x)), labels]).mean()


def test_ten_steps_of_the_reference_program():
    torch.manual_seed(0)
    network = MLP(30, 10, 24, 4, "boolean", window=None, binarize_logits=True).double()
    binary = HyperMask([w for _, w in binary_parameters(network)], DELTA, "random", seed=SEED)
    real = torch.optim.SGD([p for _, p in real_parameters(network)], RATE)
    check_ownership(network, [binary, real])
    weights = [w.detach().numpy().copy() for _, w in binary_parameters(network)]
    first = [w.copy() for w in weights]
    rng = np.random.default_rng(0)
    norms = [
        # with a beta of 0, rounding would decide the bit of an integer sum that equals its mean
        {"gamma": np.ones(n), "beta": rng.normal(0, 0.01, n), "mean": np.zeros(n), "var": np.ones(n)}
        for n in map(len, weights)
    ]
    for ours, theirs in zip(network.norms, norms, strict=True):
        ours.bias.data = torch.from_numpy(theirs["beta"].copy())
    for t in range(10):
        x, labels = rng.random((256, 30)), rng.integers(0, 10, 256)
        loss = F.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(labels))
        network.zero_grad()
        loss.backward()
        binary.step()
        real.step()
        assert loss.item() == pytest.approx(reference_step(weights, norms, x, labels, t), rel=1e-12)
        for ours, theirs, norm, expected in zip(network.layers, weights, network.norms, norms, strict=True):
            assert np.array_equal(ours.weight.detach().numpy(), theirs)
            for name, value in (
                ("gamma", norm.weight),
                ("beta", norm.bias),
                ("mean", norm.running_mean),
                ("var", norm.running_var),
            ):
                np.testing.assert_allclose(value.detach().numpy(), expected[name], rtol=1e-9, atol=1e-12)
    assert all((a != b).mean() > 0.05 for a, b in zip(first, weights, strict=True))  # bits have flipped


def test_a_parameter_must_have_exactly_one_optimizer():
    network = MLP(4, 2, 3, 2)
    binary, real = [w for _, w in binary_parameters(network)], [p for _, p in real_parameters(network)]
    with pytest.raises(ValueError, match=r"norms\.0\.weight is trained by no optimizer"):
        check_ownership(network, [HyperMask(binary)])
    with pytest.raises(ValueError, match=r"layers\.0\.weight is trained by HyperMask and SGD"):
        check_ownership(network, [HyperMask(binary), torch.optim.SGD([*real, binary[0]], 0.1)])
