"""Max pooling: a maximum along rows, then one along columns, and the gradient as additions at places.

Work goes by blocks of rows, which stay in cache through all steps; blocks are shared among threads.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from refnet.arrays import Array
from refnet.kernels.cpu.threads import split, spread
from refnet.ops import pooling
from refnet.ops.conv2d import Padding, Pair

BLOCK = 1 << 15  # numbers of the result

Taps: TypeAlias = list[tuple[int, slice, slice]]  # each tap's number, the outputs that find a pixel there, these pixels


def max_pool2d_forward(x: Array, *, kernel_size: Pair, stride: Pair, padding: Padding) -> tuple[Array, Array]:
    """See :func:`refnet.ops.max_pool2d_forward`.

    The maximum of each row of a window brings its place along, in a byte if that is enough. Of equal numbers the first
    in the first of the rows is the first of the window.
    """
    (kh, kw), (rows, columns) = kernel_size, x.shape[1:3]
    ho, wo = (
        (extent + sum(pads) - k) // s + 1
        for extent, k, s, pads in zip((rows, columns), kernel_size, stride, padding, strict=True)
    )
    y = np.empty((len(x), ho, wo, x.shape[3]), x.dtype)
    place = np.empty(y.shape, np.int32)
    code = np.uint8 if kh * kw <= 256 else np.int32
    across = _taps(columns, 0, wo, kw, stride[1], padding[1][0])

    def work(blocks: Sequence[tuple[int, int, int]]) -> set[int]:
        """Fill these blocks; in which images a NaN is."""
        undefined = set()
        for image, start, stop in blocks:
            down = _taps(rows, start, stop, kh, stride[0], padding[0][0])
            needed = _hull(pixels for _, _, pixels in down)
            along_rows = np.empty((needed.stop - needed.start, wo, x.shape[3]), x.dtype)
            codes = np.zeros(along_rows.shape, code)
            _maximum(across, x[image, needed].swapaxes(0, 1), None, along_rows.swapaxes(0, 1), codes.swapaxes(0, 1), 1)
            down = [(tap, to, slice(i.start - needed.start, i.stop - needed.start, i.step)) for tap, to, i in down]
            best, chosen = y[image, start:stop], np.zeros((stop - start, *y.shape[2:]), code)
            _maximum(down, along_rows, codes, best, chosen, kw)
            place[image, start:stop] = chosen
            if np.isnan(best.max(initial=-np.inf)):
                undefined.add(image)
        return undefined

    step = _rows_at_once(y)
    blocks = [(image, start, min(start + step, ho)) for image in range(len(x)) for start in range(0, ho, step)]
    for image in sorted(set().union(*spread(work, split(blocks)))):  # no comparison finds a NaN
        alone = slice(image, image + 1)
        y[alone], place[alone] = pooling.max_pool2d_forward.specification(
            x[alone], kernel_size=kernel_size, stride=stride, padding=padding
        )
    return y, place


def _maximum(taps: Taps, values: Array, codes: Array | None, best: Array, chosen: Array, factor: int) -> None:
    """Along the first axis, write the maximum over the taps to `best`, and which it is to `chosen`, which holds zeros.

    That is the tap's number times `factor`, plus the value's own code. Of equal values the first counts; where none is
    above minus infinity, it is 0: the place of the padding, which is before them, or of the first value.
    """
    first = taps[0][1] if taps and taps[0][0] == 0 else slice(0, 0)
    best[: first.start] = best[first.stop :] = -np.inf
    for tap, outputs, inputs in taps:
        value, highest, place = values[inputs], best[outputs], chosen[outputs]
        own = 0 if codes is None else codes[inputs]
        if tap == 0:
            highest[...], place[...] = value, own
            continue
        higher = (value > highest).view(np.uint8).astype(chosen.dtype, copy=False)
        np.maximum(highest, value, out=highest)
        np.maximum(place, higher * (own + tap * factor), out=place)  # a later tap's number is greater


def max_pool2d_grad(
    grad_output: Array, place: Array, *, input_size: Pair, kernel_size: Pair, stride: Pair, padding: Padding
) -> Array:
    """See :func:`refnet.ops.max_pool2d_grad`. Each output's gradient is added where its place is; images are shared."""
    (height, width), (ho, wo, c) = input_size, grad_output.shape[1:]
    (top, _), (left, _) = padding
    grad = np.zeros((len(place), height, width, c), grad_output.dtype)
    a, b = np.divmod(np.arange(kernel_size[0] * kernel_size[1]), kernel_size[1])
    from_corner = (a * width + b) * c  # of a window to the place within, in numbers
    step = _rows_at_once(grad_output)
    rows, columns = np.arange(ho) * stride[0] - top, np.arange(wo) * stride[1] - left
    corners = rows[:step, None, None] * (width * c) + columns[:, None] * c + np.arange(c)  # of the first block
    reaching_out = _reaches_out(rows, height, kernel_size[0])[:, None] | _reaches_out(columns, width, kernel_size[1])

    def work(images: Sequence[int]) -> None:
        for image in images:
            flat = grad[image].reshape(-1)
            for start in range(0, ho, step):
                block = slice(start, start + step)
                chosen, values = place[image, block], grad_output[image, block]
                pixel = (from_corner + start * stride[0] * width * c).take(chosen)
                pixel += corners[: len(chosen)]
                i, j = np.nonzero(reaching_out[block])
                row, column = rows[block][i, None] + a[chosen[i, j]], columns[j, None] + b[chosen[i, j]]
                outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
                if outside.any():  # a window with nothing above minus infinity has its place in the padding
                    values = values.copy()
                    pixel[i, j], values[i, j] = np.where(outside, 0, pixel[i, j]), np.where(outside, 0, values[i, j])
                np.add.at(flat, pixel.reshape(-1), values.reshape(-1))

    spread(work, split(range(len(place))))
    return grad


def _reaches_out(starts: Array, extent: int, kernel: int) -> Array:
    """Which windows reach into the padding, along one axis."""
    out: Array = (starts < 0) | (starts + kernel > extent)
    return out


def _taps(extent: int, start: int, stop: int, kernel: int, stride: int, before: int) -> Taps:
    """Along one axis, the taps of the outputs from `start` to `stop`, which are counted from 0."""
    taps = []
    for tap in range(kernel):
        low = max(start, -((tap - before) // stride))
        high = min(stop, (extent - 1 + before - tap) // stride + 1)
        pixel = low * stride + tap - before
        if low < high:
            pixels = slice(pixel, pixel + (high - low - 1) * stride + 1, stride)
            taps.append((tap, slice(low - start, high - start), pixels))
    return taps


def _hull(pixels: Iterable[slice]) -> slice:
    """The pixels from the first to the last of all slices."""
    slices = list(pixels)
    return slice(min((s.start for s in slices), default=0), max((s.stop for s in slices), default=0))


def _rows_at_once(result: Array) -> int:
    """How many rows of an image make a block."""
    rows: int = BLOCK // max(result.shape[2] * result.shape[3], 1)
    return max(rows, 1)
