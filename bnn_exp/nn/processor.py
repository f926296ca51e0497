"""The features of this processor by which layers and `bnn_exp.bits.cpu` choose between our own kernels and torch's products."""

import torch

from bnn_exp.nn.product import HAS_VNNI


def _supports(feature: str) -> bool:
    """Returns True if torch knows that this processor has the feature, such as `amx_tile`."""
    return getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)()


AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"  # this processor looks up 16 float32 or 64 bytes at once
VNNI = AVX512 and HAS_VNNI  # this processor multiplies uint8 by int8 and adds up in int32 at once
AVX512_BF16 = AVX512 and _supports("avx512_bf16")  # this processor multiplies pairs of bf16 and adds up in float32 at once
AMX = _supports("amx_tile")  # this processor multiplies tiles of bf16: torch's products take the place of look-ups
