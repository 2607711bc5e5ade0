"""Kernels with conventions of their own: other arrays, other layouts, other boxes, other names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from refnet.arrays import Array, namespace
from refnet.errors import ArgumentError, DependencyError
from refnet.kernel_op import KernelOp
from refnet.testing.calls import Call, as_tuple

AXES = {"CHNW": "NHWC", "HIOW": "HWIO", "CPQR": "RPQC"}  # letters in alphabetical order: refnet's order


class Unsuited(Exception):
    """A call can't be expressed in a kernel's conventions; it is passed over."""


class Adapter:
    """How a kernel's conventions differ from the specification's, a line in all::

        Adapter(arrays="torch", x="NCHW", w="OIHW", result="NCHW", padding="symmetric")
        Adapter(boxes="yxyx", limit="count", rename={"limit": "max_output_size"})
        Adapter(arrays="torch", features="NCHW", boxes="rois", result="NCHW", rename={"size": "output_size"})

    Args:
        arrays: "same" gives the kernel the arrays of the device, "torch" PyTorch's tensors of the same memory (DLPack);
            strides that PyTorch hasn't, negative ones, are made plain by a copy. Results may be anything with DLPack.
        result: the layout of the result, or of each result, as below; None where it is the specification's.
        rename: names of parameters, the specification's: the kernel's.
        image_size: (H, W), which "yxyx_normalized" divides by.
        conventions: for arguments by name,

            * a four-letter layout of images "NCHW", weights "OIHW" or regions "RCPQ": the kernel gets C order;
            * for boxes "xywh", "cxcywh", "yxyx", "yxyx_normalized"; "rois", (R, 5) with the image's index before each
              box in place of an argument of its own; "dets", (B, 5) with its score behind each box. Calls whose boxes
              can't be written so without rounding are passed over;
            * for padding "symmetric": (vertical, horizontal); calls with other paddings are passed over;
            * for limit "cut": the kernel has none and its result is cut; "count": a limit of None is the number of boxes.

    Raises:
        ArgumentError: there is no such convention.
    """

    def __init__(
        self,
        *,
        arrays: Literal["same", "torch"] = "same",
        result: str | tuple[str | None, ...] | None = None,
        rename: Mapping[str, str] | None = None,
        image_size: tuple[int, int] | None = None,
        **conventions: str,
    ) -> None:
        if arrays not in ("same", "torch"):
            raise ArgumentError(f'Adapter: arrays must be "same" or "torch", got {arrays!r}')
        for name, convention in [*conventions.items(), *(("result", r) for r in _each(result) if r)]:
            known = SPECIAL.get(name, ()) if name in SPECIAL else (*BOXES, *JOINED)
            if convention not in known and "".join(sorted(convention)) not in AXES:
                raise ArgumentError(
                    f"Adapter: {name}: expected a layout or one of {', '.join(known)}, got {convention!r}"
                )
        if "yxyx_normalized" in conventions.values() and image_size is None:
            raise ArgumentError("Adapter: yxyx_normalized needs image_size=(H, W)")
        self.arrays, self.result, self.rename = arrays, result, dict(rename or {})
        self.image_size, self.conventions = image_size, conventions

    def __repr__(self) -> str:
        named = {"result": self.result, "rename": self.rename, "image_size": self.image_size}
        given = {"arrays": self.arrays, **{k: v for k, v in named.items() if v}, **self.conventions}
        return f"Adapter({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def wrap(self, operation: KernelOp[..., Any], kernel: Callable[..., Any]) -> Adapted:
        """A kernel with the specification's conventions that calls `kernel` with its own."""
        return Adapted(self, operation, kernel)


class Adapted:
    """A kernel behind an :class:`Adapter`; takes what the specification takes."""

    def __init__(self, adapter: Adapter, operation: KernelOp[..., Any], kernel: Callable[..., Any]) -> None:
        self.adapter, self.operation, self.kernel = adapter, operation, kernel
        self.names = list(_parameters(operation))

    def __call__(self, *arrays: Any, **parameters: Any) -> Any:
        """What the kernel makes of the arguments, converted to its conventions and back."""
        adapter = self.adapter
        values = dict(zip(self.names, arrays, strict=False))
        xp = namespace(*arrays)
        theirs = self._arrays(values)
        positional = [self._handed(value) for value in theirs.values()]
        named = {adapter.rename.get(name, name): value for name, value in self._parameters(values, parameters).items()}
        results = as_tuple(self.kernel(*positional, **named))
        layouts = (adapter.result,) * len(results) if isinstance(adapter.result, str) else adapter.result
        ours = tuple(
            from_axes(_received(result, xp), layout)
            for result, layout in zip(results, layouts or (None,) * len(results), strict=True)
        )
        if adapter.conventions.get("limit") == "cut":
            ours = tuple(result[: parameters["limit"]] for result in ours)
        return ours[0] if len(ours) == 1 else ours

    def suits(self, call: Call) -> None:
        """Check that `call` can be expressed.

        Raises:
            Unsuited: it can't.
        """
        self._arrays(call.arrays)
        self._parameters(call.arrays, call.parameters)

    def _arrays(self, values: dict[str, Any]) -> dict[str, Any]:
        theirs = dict(values)
        for name, convention in self.adapter.conventions.items():
            if name in SPECIAL or theirs.get(name) is None:
                continue
            if convention in JOINED:
                theirs[name] = self._joined(theirs, name, convention)
            elif convention in BOXES:
                theirs[name] = to_boxes(theirs[name], convention, self.adapter.image_size)
            else:
                theirs[name] = to_axes(theirs[name], convention)
        return theirs

    def _joined(self, theirs: dict[str, Any], name: str, convention: str) -> Any:
        other, before = JOINED[convention]
        column = theirs.pop(other)[:, None].astype(theirs[name].dtype)
        parts = [column, theirs[name]] if before else [theirs[name], column]
        return namespace(column).concatenate(parts, axis=1)

    def _parameters(self, arrays: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        theirs = dict(parameters)
        conventions = self.adapter.conventions
        if "padding" in conventions:
            (top, bottom), (left, right) = parameters["padding"]
            if (top, left) != (bottom, right):
                raise Unsuited
            theirs["padding"] = (top, left)
        if conventions.get("limit") == "cut":
            del theirs["limit"]
        elif conventions.get("limit") == "count" and parameters["limit"] is None:
            theirs["limit"] = len(arrays["boxes"])
        return theirs

    def _handed(self, array: Any) -> Any:
        if self.adapter.arrays == "same" or array is None:
            return array
        if any(stride < 0 for stride in array.strides):
            array = array.copy()
        return _torch().from_dlpack(array)


def to_axes(array: Any, layout: str) -> Any:
    """An array in refnet's order of axes in another, in C order."""
    ours = AXES["".join(sorted(layout))]
    return namespace(array).ascontiguousarray(array.transpose([ours.index(letter) for letter in layout]))


def from_axes(array: Any, layout: str | None) -> Any:
    """The opposite of :func:`to_axes`."""
    if layout is None:
        return array
    ours = AXES["".join(sorted(layout))]
    return namespace(array).ascontiguousarray(array.transpose([layout.index(letter) for letter in ours]))


def to_boxes(boxes: Array, form: str, image_size: tuple[int, int] | None = None) -> Array:
    """(x1, y1, x2, y2) in another form.

    Raises:
        Unsuited: only with rounding.
    """
    forwards, backwards = BOXES[form]
    size = np.array((image_size or (1, 1)) * 2, boxes.dtype)
    theirs: Array = forwards(boxes, size)
    if not bool((backwards(theirs, size) == boxes).all()):
        raise Unsuited
    return theirs


def _stack(array: Array, *columns: Array) -> Array:
    stacked: Array = namespace(array).stack(columns, axis=1)
    return stacked


Turn = Callable[[Array, Array], Array]

# how boxes are converted, and back; the second argument is (H, W, H, W)
BOXES: dict[str, tuple[Turn, Turn]] = {
    "xyxy": (lambda b, _: b, lambda b, _: b),
    "yxyx": (lambda b, _: b[:, [1, 0, 3, 2]], lambda b, _: b[:, [1, 0, 3, 2]]),
    "yxyx_normalized": (lambda b, size: b[:, [1, 0, 3, 2]] / size, lambda b, size: (b * size)[:, [1, 0, 3, 2]]),
    "xywh": (
        lambda b, _: _stack(b, b[:, 0], b[:, 1], b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]),
        lambda b, _: _stack(b, b[:, 0], b[:, 1], b[:, 0] + b[:, 2], b[:, 1] + b[:, 3]),
    ),
    "cxcywh": (
        lambda b, _: _stack(b, (b[:, 0] + b[:, 2]) / 2, (b[:, 1] + b[:, 3]) / 2, b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]),
        lambda b, _: _stack(
            b, b[:, 0] - b[:, 2] / 2, b[:, 1] - b[:, 3] / 2, b[:, 0] + b[:, 2] / 2, b[:, 1] + b[:, 3] / 2
        ),
    ),
}
JOINED = {"rois": ("image_index", True), "dets": ("scores", False)}  # which argument is joined, and whether before
SPECIAL = {"padding": ("symmetric",), "limit": ("cut", "count")}


def _each(result: str | tuple[str | None, ...] | None) -> tuple[str | None, ...]:
    return result if isinstance(result, tuple) else (result,)


def _parameters(operation: KernelOp[..., Any]) -> list[str]:
    return list(inspect.signature(operation.specification).parameters)


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise DependencyError("Adapter: arrays='torch' needs PyTorch, which isn't installed") from None


def _received(result: Any, xp: Any) -> Any:
    """A kernel's result as an array of `xp`, in the same memory."""
    return result if isinstance(result, xp.ndarray) else xp.from_dlpack(result)
