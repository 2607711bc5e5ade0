"""Faster text for refnet's operations. Imported as ``refnet.kernels``; importing it changes nothing.

>>> import refnet.kernels
>>> refnet.kernels.install()          # register every kernel for the devices that it is written for
>>> print(refnet.kernels.installed())  # which kernel runs where
"""

if __name__ == "kernels":
    raise ImportError("import refnet.kernels, not kernels: the folder kernels/ is installed as refnet.kernels")

from typing import Any

from refnet.errors import KernelError
from refnet.kernel_op import KernelOp, operations, title_of

DEVICES = ("cpu", "cuda")


def install() -> None:
    """Register all of refnet's kernels: those of :mod:`refnet.kernels.cpu`, and those of :mod:`refnet.kernels.cuda`.

    The latter run on CuPy's arrays; they are compiled when they are first launched, and nothing here needs CuPy.
    """
    from refnet.kernels import cpu, cuda

    for device, kernels in zip(DEVICES, (cpu.KERNELS, cuda.KERNELS), strict=True):
        for name, kernel in kernels.items():
            operations()[name].register(device, kernel)


def uninstall() -> None:
    """Forget every registered kernel, so that the specification runs again."""
    for operation in operations().values():
        for device in DEVICES:
            operation.unregister(device)


def installed() -> str:
    """A table of what runs where, one operation a line."""
    rows = []
    for name, operation in operations().items():
        row = f"{name:32}"
        for device in DEVICES:
            row += f" {device}: {_title(operation, device):44}"
        rows.append(row.rstrip())
    return "\n".join(rows)


def _title(operation: KernelOp[..., Any], device: str) -> str:
    """What of `operation` runs on `device`."""
    try:
        kernel = operation.resolve(device)
    except KernelError:
        return "no kernel"
    if kernel is operation.specification:
        return "specification"
    return title_of(kernel)
