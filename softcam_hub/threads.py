"""Set how many threads compute, and how they wait for one another. This has to happen before torch is imported.

- Threads that wait for the slowest of them spin by default. Beside other programs, the one that is waited for has no
  core while the others spin on theirs, and an update takes twice as long or more (docs/speed.md has the measurement).
- torch counts the cores of the machine, also in a container that may use few of them.
"""

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

CONTROL_GROUP = Path("/sys/fs/cgroup/cpu.max")
"""File in which Linux says how long a container may compute: microseconds in every period, or `max`, and the period."""


def set_up_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have waiting threads sleep, and use the cores that this process may use; variables that are set already stay.

    Args:
        environment: Variables of the environment, which OpenMP reads when torch is imported.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores = usable_cores()
    if cores < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(cores))


def usable_cores(control_group: Path = CONTROL_GROUP) -> int:
    """Return the number of cores that this process may use.

    Args:
        control_group: File with the limit of a container.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = control_group.read_text().split()
        return max(1, min(allowed, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError):  # no container, or `max`
        return allowed
