"""Who takes part, and who is left out and why."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refnet.errors import DeviceError
from refnet.kernel_op import operations

SPECIFICATION = "specification"
CPU = "kernels/cpu"
CUDA = "kernels/cuda"
TORCH = "torch"
CHANNELS_LAST = "torch channels last"
TORCHVISION = "torchvision"
PYCOCOTOOLS = "pycocotools"


@dataclass(frozen=True, kw_only=True)
class Field:
    """The contestants.

    Attributes:
        torch, torchvision: the modules, or None.
        cupy: the module, if it has a device to work on, or None.
        missing: who is left out, with the reason.
        versions: of the libraries that are there.
    """

    torch: Any = None
    torchvision: Any = None
    cupy: Any = None
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls) -> Field:
        """Everybody who can be imported and works."""
        from refnet.kernels.cuda.cupy_module import import_cupy

        found: dict[str, Any] = {}
        missing = {}
        attempts: dict[str, Callable[[], Any]] = {
            "torch": lambda: importlib.import_module("torch"),
            "torchvision": _working_torchvision,
            "cupy": import_cupy,
        }
        for name, attempt in attempts.items():
            try:
                found[name] = attempt()
            except (ImportError, DeviceError) as error:
                missing[name] = str(error)
        versions = {"numpy": np.__version__} | {name: module.__version__ for name, module in found.items()}
        return cls(**found, missing=missing, versions=versions)

    def set_threads(self, count: int) -> None:
        """Let everybody have so many threads."""
        from refnet.kernels.cpu import threads

        os.environ["REFNET_NUM_THREADS"] = str(count)
        threads.reset()
        if self.torch is not None:
            self.torch.set_num_threads(count)


def _working_torchvision() -> Any:
    """torchvision with its compiled operators.

    Raises:
        ImportError: it isn't installed, or its operators don't fit the PyTorch that is.
    """
    torch = importlib.import_module("torch")
    try:
        module = importlib.import_module("torchvision")
        module.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (RuntimeError, NotImplementedError) as error:
        raise ImportError(f"torchvision's operators don't work: {error}") from error
    return module


def by_specification(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` with the specification of every operation instead of any kernel."""

    def run() -> Any:
        with ExitStack() as stack:
            for operation in operations().values():
                stack.enter_context(operation.using(operation.specification))
            return call()

    return run


def on_device(cupy: Any, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, and a wait until the device is done with it."""

    def run() -> Any:
        result = call()
        cupy.cuda.get_current_stream().synchronize()
        return result

    return run
