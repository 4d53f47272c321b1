"""How torch's threads wait for each other on a CPU: OpenMP lets them spin, for as long as the environment says.

Where other programs want the cores too, those that spin keep them from those that are waited for, and a pass takes
many times as long. GNU's OpenMP, which torch for Linux comes with, spins little only where it has more threads than
cores, not where others are busy. It looks at the environment once, when torch is loaded.
"""

import logging
import os

SAYS_HOW = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "1000"
"""What GNU's OpenMP takes where it has more threads than cores: some microseconds."""
SPIN_LITTLE = f"GOMP_SPINCOUNT={SPINS}"
BUSY_SHARE = 0.75
logger = logging.getLogger("penstock")


def spin_little() -> None:
    """For a process of our own, before torch is loaded; what the environment says stays."""
    if not _said():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def warn_of_spinning() -> None:
    """Say what to set where the cores are busy already."""
    import torch  # here, so that commands set the environment before

    load, cores = load_and_cores()
    if not _said() and torch.get_num_threads() > 1 and load > BUSY_SHARE * cores:
        logger.warning(
            "other programs keep the cores busy (a load of %.1f on %d), and torch's threads spin while they wait for "
            "each other: passes may take many times as long; set %s before Python starts",
            *(load, cores, SPIN_LITTLE),
        )


def load_and_cores() -> tuple[float, int]:
    """How many programs ran or waited for a core in the last minute, and how many cores the machine has."""
    return os.getloadavg()[0], os.cpu_count() or 1


def _said() -> bool:
    return any(name in os.environ for name in SAYS_HOW)
