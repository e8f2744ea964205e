"""Keep freed memory for the next tensors, in programs that compute on the CPU for minutes.

The C library of Linux returns every large block to the system as soon as it is freed, and asks for the next one anew.
A training step allocates gigabytes in such blocks, each page of which the system has to clear again: a third of the
time and more (docs/speed.md has the measurement).
"""

import ctypes
import os
import sys
from collections.abc import Mapping

SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Variables of the environment by which a user sets the same."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of these settings in mallopt(3)."""

LARGEST_KEPT = 2**30
"""Bytes of the largest block that is kept."""

LARGEST_KEPT_BY_OLD_LIBRARIES = 2**25
"""The same where the C library is older and refuses more."""

NEVER = -1
"""Threshold of free memory at which none is returned."""


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Have the C library keep freed memory in this process, unless the user has set how it does; tell whether it does.

    The process holds on to the most memory that it has used at once.

    Args:
        environment: Variables of the environment.
    """
    if sys.platform != "linux" or any(name in environment for name in SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is None:
        return False
    kept = mallopt(MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(MMAP_THRESHOLD, LARGEST_KEPT_BY_OLD_LIBRARIES)
    return bool(mallopt(TRIM_THRESHOLD, NEVER)) and bool(kept)
