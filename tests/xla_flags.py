"""Flags of XLA for tests, which compile for longer than they compute.

Plain machine code, and loops that are written by LLVM alone, take half the time.
"""

import importlib.metadata
import pathlib

_PINNED = (pathlib.Path(__file__).parents[1] / "constraints.txt").read_text().split()


def xla_flags(devices: int | None = None, fused: bool = False) -> str:
    """What `XLA_FLAGS` should be.

    Args:
        devices: How many devices the CPU should seem to be.
        fused: Whether loops are written in a whole as a user's are.
    """
    flags = ["--xla_backend_optimization_level=0"]
    # A version that does not know a flag ends the process.
    if not fused and f"jaxlib=={importlib.metadata.version('jaxlib')}" in _PINNED:
        flags.append("--xla_cpu_use_fusion_emitters=false")
    if devices:
        flags.append(f"--xla_force_host_platform_device_count={devices}")
    return " ".join(flags)
