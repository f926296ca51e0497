"""Estimates which engine takes less time for a step of an MLP of bits on a CPU. Imports no torch.

`benchmark=machine` replaces this estimate by measurements (`bnn_exp.training.measured`).

The packed engine takes about a millisecond more for its own calls, and less for each weight and for each product. So `packed`
is faster from a certain work on. The work is the number of weights of a hidden layer times the number of samples of a batch.
The rule's own work on each weight counts as a number of further samples. A rule that reads only `entries` of a gradient, as the
random mask does, makes `packed` faster from less work on than a rule that reads the `whole`.
"""

from pathlib import Path

SAMPLES = {"entries": 0, "whole": 150}  # the samples as which the rule's own work counts
# The work from which on `packed` is faster, measured on a Zen 5. For WITHOUT environment variables hid its AVX-512.
WITH_AVX512 = {"entries": 1.5e6, "whole": 4.5e6}
WITHOUT = {"entries": 4e6, "whole": 8e7}  # both engines multiply gradients by torch's products


def cheaper(rule: str, hidden: int, batch: int) -> str:
    """Returns the engine whose step takes less time on this processor, `dense` or `packed`.

    Args:
        rule: a key of SAMPLES.
        hidden, batch: the hidden size of the network, and the batch size.
    """
    least = WITH_AVX512 if has_avx512() else WITHOUT
    return "packed" if hidden**2 * (batch + SAMPLES[rule]) >= least[rule] else "dense"


def has_avx512() -> bool:
    """Returns True if Linux tells that this processor has AVX-512; False on another system."""
    try:
        return "avx512bw" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
