"""conv2d_forward and conv2d_fused_forward."""

from collections.abc import Sequence

import numpy as np

from refnet.arrays import Array
from refnet.kernels.cpu.conv import patches
from refnet.kernels.cpu.conv.patches import Windows, correlate
from refnet.kernels.cpu.threads import runs, split, spread
from refnet.ops.conv2d import Padding, Pair


def conv2d_forward(x: Array, w: Array, *, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> Array:
    """See :func:`refnet.ops.conv2d_forward`."""
    cg, outputs = w.shape[2:]
    windows = Windows.of_convolution(x.shape[1:3], w.shape[:2], stride, padding, dilation)
    y = np.empty((len(x), *windows.size, outputs), x.dtype)
    og = outputs // groups
    for g in range(groups):
        weights = np.ascontiguousarray(w[..., g * og : (g + 1) * og]).reshape(-1, og)
        correlate(x[..., g * cg : (g + 1) * cg], weights, y[..., g * og : (g + 1) * og], windows)
    return y


def conv2d_fused_forward(
    x: Array,
    w: Array,
    scale: Array | None,
    shift: Array | None,
    residual: Array | None,
    *,
    relu: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """See :func:`refnet.ops.conv2d_fused_forward`."""
    y = conv2d_forward(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
    rows = y.reshape(-1, y.shape[3])
    added = None if residual is None else residual.reshape(rows.shape)

    def finish(some: Sequence[slice]) -> None:
        for block in some:
            part = rows[block]
            if scale is not None:
                part *= scale
            if shift is not None:
                part += shift
            if added is not None:
                part += added[block]
            if relu:
                np.maximum(part, 0, out=part)

    if rows.size and (relu or any(array is not None for array in (scale, shift, residual))):
        spread(finish, split(runs(len(rows), -(-y.nbytes // patches.TILE_BYTES))))
    return y
