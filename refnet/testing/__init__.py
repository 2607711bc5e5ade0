"""The public test bench: properties that any differentiable function or kernel must have.

>>> from refnet import ops
>>> from refnet.testing import check_kernel
>>> print(check_kernel(ops.nms, my_nms))   # or a KernelMismatch with the smallest counterexample

The same from a shell: ``refnet check nms --kernel mine.py:my_nms``. Examples are drawn by hypothesis, which is loaded
when something is checked: ``pip install 'refnet[testing]'``.
"""

from refnet.testing.adapter import Adapter
from refnet.testing.bounds import Expected, Rounding, equal, mixed, sums
from refnet.testing.calls import Call, Values
from refnet.testing.contract import Adjoint, Contract, Refusal
from refnet.testing.gradients import GradientError, check_gradients
from refnet.testing.kernels import check_kernel, contract_of
from refnet.testing.layouts import LAYOUTS, laid_out
from refnet.testing.report import KernelMismatch, Report
from refnet.testing.reproduction import unpacked

__all__ = [
    "LAYOUTS",
    "Adapter",
    "Adjoint",
    "Call",
    "Contract",
    "Expected",
    "GradientError",
    "KernelMismatch",
    "Refusal",
    "Report",
    "Rounding",
    "Values",
    "check_gradients",
    "check_kernel",
    "contract_of",
    "equal",
    "laid_out",
    "mixed",
    "sums",
    "unpacked",
]
