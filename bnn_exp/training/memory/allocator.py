"""`engine.memory`: which trainings can be lean, and what becomes of freed memory. Imports no torch."""

import ctypes

from bnn_exp.config.models import weights_of
from bnn_exp.errors import UserError

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # mallopt's names for them (malloc.h)


def check(settings) -> None:
    """Refuse `engine.memory=lean` for what needs all gradients at once.

    Raises:
        UserError: it names what that is.
    """
    engine = settings.engine
    needs = (
        (weights_of(settings.model) != "bits", f"optimizer={settings.optimizer.name}, whose step needs all gradients"),
        (settings.trainer.diagnostics, "trainer.diagnostics=true, which reads all gradients"),
        (engine.devices > 1, f"engine.devices={engine.devices}, which send all gradients"),
        (engine.compile, "engine.compile=true, which computes all gradients before it gives the first"),
    )
    hindrance = next((what for hinders, what in needs if hinders), "")
    if engine.memory == "lean" and hindrance:
        raise UserError(f"engine.memory=lean: not with {hindrance}\nallowed: engine.memory=fast")


def keep_freed_memory() -> bool:
    """Ask glibc's allocator not to give memory back to the system; False where that is not to be had.

    By default it maps each tensor above 32 MB afresh and unmaps it after use; touching the new pages then takes longer than
    the computation: uint8 → float32 of 16384 × 784 pixels took 17.8 ms, and 2.2 ms into memory that was there already.
    """
    return _tell_allocator((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> bool:
    """Ask it to give every tensor of a megabyte or more back as soon as it is freed; False where that is not to be had.

    By default it learns to keep pieces of up to 32 MB, with gaps between them.
    """
    return _tell_allocator((_MMAP_THRESHOLD, 2**20), (_MMAP_MAX, 2**16), (_TRIM_THRESHOLD, 2**20))


def _tell_allocator(*options: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(*option) for option in options)
