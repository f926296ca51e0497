"""The features of this processor by which `bnn_exp.bits.cpu` chooses between its own kernels and torch's products."""

import torch

from bnn_exp.nn.product import HAS_VNNI

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"  # this processor looks up 16 float32 or 64 bytes at once
VNNI = AVX512 and HAS_VNNI  # this processor multiplies uint8 by int8 and adds up in int32 at once
