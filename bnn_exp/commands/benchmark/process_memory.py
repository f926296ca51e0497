"""The resident memory of this process, in bytes, from Linux's /proc. Imports no torch."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def known() -> bool:
    """Returns True if the system reports the memory of a process."""
    return STATUS.exists()


def resident() -> int:
    """Returns the number of bytes of this process that are resident now."""
    return _status("VmRSS")


def peak() -> int:
    """Returns the greatest number of resident bytes of this process since it began, or since `restart_peak`."""
    return _status("VmHWM")


def restart_peak() -> bool:
    """Resets `peak` to the bytes that are resident now. Returns False if the system does not allow the reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the value 5 resets VmHWM, the peak of the memory (man 5 proc)
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    with STATUS.open() as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))
