"""Exact products of small whole numbers on a GPU, by torch, in the smallest dtypes that keep all sums exact.

- Values 0 and ±1 are exact in fp8 (e4m3) and in float16. Hopper adds fp8 products up in registers that keep about 14 bits.
  Sums of up to MOST_IN_FP8 terms are exact even there, and `use_fast_accum=False` moves them to float32 every few terms.
  Products of float16 or bfloat16 add up in float32, where whole numbers up to 2²⁴ are exact.
- Pixels are exact in bfloat16: 8 bits hold 0…255. Their sums are exact up to 2²⁴, so for up to 65,793 inputs.
- A sum of n values ±1 or 0 lies in −n…n. float16 holds each whole number up to 2¹¹, and each even number up to 2¹².
"""

import logging
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)
MOST_IN_FP8 = 2**13
MOST_IN_HALF = 2**11


@cache
def has_fp8(device: torch.device) -> bool:
    """Returns True if a GPU has fp8 products (compute capability 8.9 or newer), and a trial finds them exact."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    try:
        return fp8_is_exact(device)
    except RuntimeError as error:
        log.warning("products are computed in float16, because fp8 products fail: %s", error)
        return False


def fp8_is_exact(device: torch.device) -> bool:
    """Returns True if the greatest sums of fp8 products are exact on the device, also where they are odd. Waits for a GPU."""
    for inputs, dtype in ((MOST_IN_HALF, torch.float16), (MOST_IN_FP8, torch.float32)):
        ones = torch.ones(17, inputs, device=device)
        v = ones[:16].tril(inputs - 16)  # row j begins with inputs − 15 + j ones, and ends with zeros
        found = exact_product(ones.to(torch.float8_e4m3fn), v.to(torch.float8_e4m3fn), dtype)
        if not bool((found == v.sum(1)).all()):
            return False
    return True


def of_values(inputs: int, fp8: bool) -> torch.dtype:
    """Returns the fastest dtype for products of values 0 and ±1 whose sums over `inputs` terms stay exact."""
    return torch.float8_e4m3fn if fp8 and inputs <= MOST_IN_FP8 else torch.float16


def of_sums(inputs: int, zero: float) -> torch.dtype:
    """Returns the smallest dtype that holds every sum over `inputs` products of values exactly.

    Without the value 0, such sums are all even or all odd, as `inputs` is.
    """
    even = zero != 0 and inputs % 2 == 0
    return torch.float16 if inputs <= MOST_IN_HALF * (2 if even else 1) else torch.float32


def exact_product(a: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a vᵀ; see `bnn_exp.bits.cuda.operations.exact_product`."""
    with torch.autocast(a.device.type, enabled=False):  # autocast would round the operands
        if a.dtype == torch.float8_e4m3fn:
            one = unit(a.device)
            return torch._scaled_mm(a, v.t(), one, one, out_dtype=dtype, use_fast_accum=False)
        if a.dtype == dtype:
            return torch.mm(a, v.t())
        return torch.mm(a, v.t(), out_dtype=dtype) if a.is_cuda else torch.mm(a.float(), v.float().t()).to(dtype)


@cache
def unit(device: torch.device) -> Tensor:
    """Returns the scale 1 of an fp8 product, a float32 scalar on the device, made once."""
    return torch.ones((), device=device)
