"""Compile a .cu with NVRTC and launch its kernels over CuPy's arrays."""

from typing import NoReturn

from refnet.errors import CompilerError
from refnet.kernels.cuda.program import Program


def load(program: Program, name: str) -> NoReturn:
    """The kernel `name` of `program`, compiled for the present device.

    Raises:
        CompilerError: NVRTC isn't wired up yet.
    """
    raise CompilerError(f"{program.source}: {name} can't be compiled for a GPU yet")
