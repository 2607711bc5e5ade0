"""conv2d_forward and conv2d_fused_forward, by the algorithm that :mod:`refnet.kernels.cpu.conv.plan` chooses."""

from collections.abc import Callable, Sequence

import numpy as np

from refnet.arrays import Array
from refnet.kernels.cpu.conv import winograd
from refnet.kernels.cpu.conv.epilogue import Epilogue
from refnet.kernels.cpu.conv.patches import Windows, correlate
from refnet.kernels.cpu.conv.plan import WINOGRAD, Plan, algorithm_of, planned
from refnet.kernels.cpu.conv.shifted import correlate_shifted
from refnet.kernels.cpu.threads import count, runs, split, spread
from refnet.ops.conv2d import Padding, Pair


def conv2d_forward(x: Array, w: Array, *, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> Array:
    """See :func:`refnet.ops.conv2d_forward`."""
    return _convolve(x, w, Epilogue(), stride, padding, dilation, groups)


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
    epilogue = Epilogue(scale, shift, residual, relu)
    return _convolve(x, w, epilogue, stride, padding, dilation, groups)


conv2d_forward.algorithm = conv2d_fused_forward.algorithm = algorithm_of("conv2d_forward")  # type: ignore[attr-defined]


def _convolve(
    x: Array, w: Array, epilogue: Epilogue, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    with planned("conv2d_forward", x.shape, w.shape, dtype=x.dtype, **geometry) as chosen:
        windows, fill = chosen.windows, ALGORITHMS[chosen.algorithm]
        y = np.empty((len(x), *windows.size, w.shape[3]), x.dtype)
        if y.size == 0:
            return y
        if groups == 1:
            fill(x, w, y, windows, epilogue, chosen)
            return y
        cg, og = w.shape[2], w.shape[3] // groups
        for g in range(groups):
            inputs, outputs = slice(g * cg, g * cg + cg), slice(g * og, g * og + og)
            fill(x[..., inputs], w[..., outputs], y[..., outputs], windows, epilogue.of_channels(outputs), chosen)
        return y


def _product(x: Array, w: Array, y: Array, windows: Windows, epilogue: Epilogue, chosen: Plan) -> None:
    """The image is the matrix: each pixel times the weights."""
    pixels, weights = x.reshape(-1, x.shape[3]), w.reshape(w.shape[2:])
    result = y.reshape(-1, y.shape[3])  # a view: the outputs of a group are evenly apart
    epilogue = epilogue.of_pixels()

    def multiply(some: Sequence[slice]) -> None:
        for rows in some:
            np.matmul(pixels[rows], weights, out=result[rows])
            epilogue.finish(result, rows)

    spread(multiply, split(runs(len(pixels), max(-(-len(pixels) // chosen.tile), min(count(), len(pixels))))))


def _patches(x: Array, w: Array, y: Array, windows: Windows, epilogue: Epilogue, chosen: Plan) -> None:
    """A row of a matrix for each window."""
    if w.strides[3] > w.strides[2]:  # transposed: BLAS takes them so, and a copy would be slow
        weights = np.ascontiguousarray(w.transpose(3, 0, 1, 2)).reshape(w.shape[3], -1).T
    else:
        weights = np.ascontiguousarray(w).reshape(-1, w.shape[3])
    correlate(x, weights, y, windows, lambda where: epilogue.finish(y, where))


def _shifted(x: Array, w: Array, y: Array, windows: Windows, epilogue: Epilogue, chosen: Plan) -> None:
    """Tap by tap."""
    correlate_shifted(x, w, y, windows, lambda where: epilogue.finish(y, where), chosen.tile)


def _winograd(x: Array, w: Array, y: Array, windows: Windows, epilogue: Epilogue, chosen: Plan) -> None:
    """Tiles of pixels times transformed weights."""
    minimal = WINOGRAD[chosen.algorithm]
    x = np.ascontiguousarray(x)
    transformed = winograd.transform_weights(w, minimal)

    def fill(some: Sequence[winograd.Block]) -> None:
        for where in winograd.correlate_blocks(x, transformed, y, minimal, origin=windows.origin, blocks=some):
            epilogue.finish(y, where)

    spread(fill, split(winograd.blocks_of(len(x), windows.size, minimal.outputs, chosen.tile)))


Fill = Callable[[Array, Array, Array, Windows, Epilogue, Plan], None]

ALGORITHMS: dict[str, Fill] = {
    "product": _product,
    "patches": _patches,
    "shifted": _shifted,
    **dict.fromkeys(WINOGRAD, _winograd),
}
