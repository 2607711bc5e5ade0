"""Faster text for refnet's operations. Imported as ``refnet.kernels``; importing it changes nothing.

>>> import refnet.kernels
>>> refnet.kernels.install()          # register every kernel for the devices that it is written for
>>> print(refnet.kernels.installed())  # which kernel runs where
"""

if __name__ == "kernels":
    raise ImportError("import refnet.kernels, not kernels: the folder kernels/ is installed as refnet.kernels")

from refnet.kernel_op import operations


def install() -> None:
    """Register all of refnet's kernels: those of :mod:`refnet.kernels.cpu` for the CPU."""
    from refnet.kernels import cpu

    for name, kernel in cpu.KERNELS.items():
        operations()[name].register("cpu", kernel)


def uninstall() -> None:
    """Forget every registered kernel, so that the specification runs again."""
    for operation in operations().values():
        for device in ("cpu", "cuda"):
            operation.unregister(device)


def installed() -> str:
    """A table of what runs on the CPU, one operation a line."""
    rows = []
    for name, operation in operations().items():
        kernel = operation.resolve("cpu")
        text = "specification" if kernel is operation.specification else f"{kernel.__module__}.{kernel.__name__}"
        rows.append(f"{name:32} cpu: {text}")
    return "\n".join(rows)
