"""Every exception that refnet raises on purpose.

A message says what was wrong, what was expected and what was got, in that order:
``nms: scores must have one entry per box, expected 4, got 3``.
"""


class RefnetError(Exception):
    """The parent of every error raised by refnet."""


class ShapeError(RefnetError, ValueError):
    """An array has the wrong number of axes or the wrong extent along one."""


class DTypeError(RefnetError, TypeError):
    """An array has a data type that the operation doesn't take."""


class ArgumentError(RefnetError, ValueError):
    """A parameter (a threshold, a stride, a mode) is outside what is allowed."""


class DeviceError(RefnetError, RuntimeError):
    """Arrays live on different devices, or on one that isn't there."""


class KernelError(RefnetError, LookupError):
    """No kernel is registered for the device that the arrays live on."""


class GraphError(RefnetError, RuntimeError):
    """The recorded graph can't be differentiated as asked."""


class ConfigError(RefnetError, ValueError):
    """A configuration field has a value that makes no sense."""


class DataError(RefnetError, ValueError):
    """A dataset, an annotation file or an image is missing or malformed."""


class CheckpointError(RefnetError, RuntimeError):
    """A checkpoint is missing, damaged or belongs to another model."""


class WeightsError(RefnetError, ValueError):
    """A file of weights is missing, damaged, of an unknown format, or holds what no file of weights should hold."""


class LaunchError(RefnetError, TypeError):
    """A CUDA kernel is launched with arguments, or a grid, that it isn't made for; nothing ran."""


class KernelFault(RefnetError, RuntimeError):
    """A CUDA kernel did what it must not: the emulator says what, where in the source, and in which thread.

    Attributes:
        kind: memcheck (outside of its arrays, misaligned, const), initcheck (read before written, never written),
            racecheck (accesses in no order), synccheck (barriers, shuffles, deadlock), overflow, trap, or memory (the
            emulator's own ran out).
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class CompilerError(RefnetError, RuntimeError):
    """A CUDA source doesn't compile, or there is no compiler."""


class DependencyError(RefnetError, ImportError):
    """A library that only this call needs isn't installed."""
