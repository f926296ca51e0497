"""The compiled convolutions read and write no byte before or behind their tensors: pages without access lie there."""

import ctypes
import mmap
import sys

import pytest
import torch
from convolution_cases import KINDS, case
from torch import Tensor

from bnn_exp.bits import convolutions
from bnn_exp.bits.cpu import convolutions as compiled

PAGE = mmap.PAGESIZE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mmap and mprotect of Linux")


class Guarded:
    """Copies tensors to memory between two pages without access.

    Args:
        at_end: True if the last byte of a tensor lies before such a page, False if the first byte lies behind one.
    """

    def __init__(self, at_end: bool):
        self.at_end, self.maps = at_end, []

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.numel() == 0:
            return tensor
        size, pages = tensor.nbytes, -(-tensor.nbytes // PAGE)
        self.maps.append(mmap.mmap(-1, (pages + 2) * PAGE))
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.maps[-1]))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for page in (start, start + (pages + 1) * PAGE):
            assert protect(page, PAGE, 0) == 0
        at = PAGE * (pages + 1) - size if self.at_end else PAGE
        held = torch.frombuffer(self.maps[-1], dtype=torch.uint8, count=size, offset=at)
        return held.view(tensor.dtype).view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "average_codes"])
def test_a_kernel_stays_within_its_tensors(kind, at_end, monkeypatch):
    """A kernel that does not ends the process."""
    new_empty = Tensor.new_empty
    for seed in range(6):
        guarded = Guarded(at_end)
        x = torch.randint(256, (2, 3, 5, 3 * seed + 1), dtype=torch.uint8)
        given = (x, torch.tensor(0.05), 255) if kind == "average_codes" else case(kind, seed)
        expected = getattr(convolutions, kind).__wrapped__(*given)
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "new_empty", lambda self, *shape, guarded=guarded: guarded(new_empty(self, *shape)))
            found = getattr(compiled, kind)(*(guarded(each) if isinstance(each, Tensor) else each for each in given))
        assert torch.equal(found, expected), seed
