"""Run and check CUDA kernels on a CPU: the unchanged .cu, compiled by g++, over NumPy's arrays."""

from refnet.kernels.emulator.module import available, running

__all__ = ["available", "running"]
