"""Random numbers by counters, for weights: Philox 4×32-10 (Salmon et al. 2011, Random123).

A random number depends on a key, the number of the training step and its own place in the tensor alone. So every engine, every
device and every number of threads or ranks draws the same numbers. One counter gives four words of 32 bits: place p takes word
p mod 4 of counter ⌊p / 4⌋. The compiled rules draw the same numbers where they use them.

On a GPU the step number is a tensor, which a kernel reads without Python. A training step recorded as a CUDA graph therefore
draws new random numbers at each replay.
"""

import torch
from torch import Tensor

from bnn_exp.nn import operators
from bnn_exp.nn.operators import operator

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the two halves of the key after each round
ROUNDS = 10
_LOW = 0xFFFFFFFF


class Philox(torch.Generator):
    """The random numbers of one tensor in one step.

    An object numbers its draws 0, 1, and so on. An object with a seed can also be the generator of `torch.rand`. A training
    step that calls `torch.rand` on a GPU is not recorded as a CUDA graph.

    Args:
        key: 0 ≤ key < 2⁶³, made from the run's seed, the purpose and the tensor.
        step: int64 scalar on the device; a kernel reads its value when it runs.
        seed: the seed for `torch.rand`. None while CUDA records a graph, because torch then refuses to seed a generator.
    """

    def __new__(cls, key: int, step: Tensor, seed: int | None = None) -> "Philox":
        return super().__new__(cls, "cpu" if seed is None else step.device)  # type: ignore[call-arg]

    def __init__(self, key: int, step: Tensor, seed: int | None = None):
        self.key, self.step, self.draws = key, step, 0
        if seed is not None:
            self.manual_seed(seed)

    def next(self) -> int:
        """Counts one more draw and returns its number, from 0."""
        self.draws += 1
        return self.draws - 1

    def uniform(self, count: int) -> Tensor:
        """Draws `count` random numbers in [0, 1): float32 on the device of `step`."""
        return philox_uniform(count, self.key, self.step, self.next())

    def below(self, count: int, share: float) -> Tensor:
        """Draws `count` random numbers. Returns the places of the numbers below `share`, int64 and sorted, on the CPU."""
        return philox_below(count, self.key, self.step, self.next(), share)


def _empty(count: int, key: int, step: Tensor, draw: int) -> Tensor:
    return torch.empty(count, device=step.device)


@operator(
    "(int count, int key, Tensor step, int draw) -> Tensor",
    "bnn_exp.bits.cuda.draws:uniform",
    launches=1,
    fake=_empty,
    cpu="bnn_exp.bits.cpu.draws:uniform",
    numbers=lambda count, *_: count,
)
def philox_uniform(count: int, key: int, step: Tensor, draw: int) -> Tensor:
    """Returns `count` random numbers in [0, 1), float32 on the device of `step`, for the places from 0 on."""
    return uniform_of(words(count, key, step, draw))


def philox_below(count: int, key: int, step: Tensor, draw: int, share: float) -> Tensor:
    """Returns the places, int64 and sorted, whose random numbers of `philox_uniform` are below `share` as a float32."""
    if operators.numba_pays(count):
        from bnn_exp.bits.cpu import draws

        return draws.below(count, key, step, draw, share)
    return (philox_uniform(count, key, step, draw) < share).nonzero().flatten()


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws independent random numbers in [0, 1) from `generator`, with the shape, the dtype and the device of `like`."""
    if isinstance(generator, Philox):
        return generator.uniform(like.numel()).view(like.shape).to(like.dtype)
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def integers(high: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draws `count` independent integers from 0 to high − 1 from `generator`: int64 on `device`. `high` is below 2²⁴."""
    if isinstance(generator, Philox):
        return (generator.uniform(count) * high).long()
    return torch.randint(high, (count,), generator=generator, device=device)


def words(count: int, key: int, step: Tensor, draw: int) -> Tensor:
    """Returns word p mod 4 of Philox 4×32-10 for the counter (⌊p / 4⌋, step, draw), for each place p from 0 to count − 1.

    This function is the definition in plain torch. The kernels in `draws` of `bnn_exp.bits.cpu.kernels` and of
    `bnn_exp.bits.cuda` compute the same numbers.

    Returns:
        int64 [count], from 0 to 2³² − 1.
    """
    c0 = torch.arange(-(-count // 4), device=step.device) & _LOW
    c1, c2, c3 = step & _LOW, (step >> 32) & _LOW, torch.full_like(step, draw)
    k0, k1 = key & _LOW, key >> 32
    for _ in range(ROUNDS):
        (high0, low0), (high2, low2) = _product(c0, MULTIPLIERS[0]), _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    return torch.stack([c0, c1.expand_as(c0), c2.expand_as(c0), c3.expand_as(c0)], 1).flatten()[:count]


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Returns the upper and the lower 32 bits of x · factor. Both are 32-bit numbers; their product wraps around in int64."""
    product = x * factor
    return (product >> 32) & _LOW, product & _LOW


def uniform_of(word: Tensor) -> Tensor:
    """Returns 32-bit words as float32 in [0, 1), as Triton's `uint_to_uniform_float` maps them."""
    signed = torch.where(word > 0x7FFFFFFF, word - (1 << 32), word)
    return torch.where(signed < 0, -signed - 1, signed).float() * 4.6566127342e-10
