"""Run and check CUDA kernels on a CPU: the unchanged .cu, compiled by g++, over NumPy's arrays.

>>> with running(mode="check", seed=3):     # a fault is a KernelFault: what, file and line, block, thread
...     my_launcher(boxes, scores)
>>> with measuring() as metrics:            # sectors and bank conflicts of every line that touches memory
...     my_launcher(boxes, scores)
>>> print(metrics)

Not emulated: time, occupancy, weak memory order, the order in which tensor cores round their sums, approximate
intrinsics, and the fusing of products and sums.
"""

from refnet.kernels.emulator.compiler import available
from refnet.kernels.emulator.metrics import Metrics, Row, measuring
from refnet.kernels.emulator.settings import Settings, running

__all__ = ["Metrics", "Row", "Settings", "available", "measuring", "running"]
