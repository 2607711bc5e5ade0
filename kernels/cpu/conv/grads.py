"""conv2d_grad_input and conv2d_grad_weight.

The gradient to the input needs no scatter. Pixel i reads output j through tap a when i + p = s j + d a. So the
pixels of one residue (i + p) mod s see only the taps with the same residue of d a, and among them the sum over taps
is a correlation of stride 1 with every q-th tap in reverse order, where q = s / gcd(s, d): s_y s_x small convolutions,
of which each writes every s-th pixel. For stride 1 this is the well-known convolution with the flipped kernel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refnet.arrays import Array
from refnet.kernels.cpu.conv import patches
from refnet.kernels.cpu.conv.patches import Windows, correlate, matrices, one_tall_image, tiles_of
from refnet.kernels.cpu.conv.winograd import UNPACKED
from refnet.kernels.cpu.scratch import scratch
from refnet.kernels.cpu.threads import runs, split, spread
from refnet.ops.conv2d import Padding, Pair

THIN = 4096  # numbers of a product of two long matrices below which they are multiplied in pieces


def conv2d_grad_input(
    grad_output: Array, w: Array, *, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    """See :func:`refnet.ops.conv2d_grad_input`."""
    kh, kw, cg, outputs = w.shape
    if groups == 1 and _windows_tile_the_image(grad_output, w, input_size, stride, padding, dilation):
        return _side_by_side(grad_output, w)
    if math.prod(input_size) > 2 * math.prod(stride) * math.prod(grad_output.shape[1:3]):
        return _scatter(grad_output, w, input_size, stride, padding, dilation, groups)
    og = outputs // groups
    grad = np.empty((len(grad_output), *input_size, groups * cg), grad_output.dtype)
    horizontal = _residues(input_size[1], kw, stride[1], padding[1][0], dilation[1])
    for row in _residues(input_size[0], kh, stride[0], padding[0][0], dilation[0]):
        for column in horizontal:
            pixels = grad[:, row.first :: stride[0], column.first :: stride[1]]
            taps = w[row.taps, column.taps]
            if taps.size == 0:
                pixels[...] = 0
                continue
            windows = Windows(
                kernel_size=taps.shape[:2],
                size=pixels.shape[1:3],
                origin=(row.origin, column.origin),
                stride=(1, 1),
                dilation=(row.dilation, column.dilation),
            )
            for g in range(groups):
                weights = taps[..., g * og : (g + 1) * og].transpose(2, 0, 1, 3)  # Cg kh kw Og
                weights = np.ascontiguousarray(weights).reshape(cg, -1).T
                correlate(grad_output[..., g * og : (g + 1) * og], weights, pixels[..., g * cg : (g + 1) * cg], windows)
    return grad


def conv2d_grad_weight(
    x: Array,
    grad_output: Array,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """See :func:`refnet.ops.conv2d_grad_weight`."""
    windows = Windows(
        kernel_size=kernel_size,
        size=grad_output.shape[1:3],
        origin=(-padding[0][0], -padding[1][0]),
        stride=stride,
        dilation=dilation,
    )
    cg, outputs = x.shape[3] // groups, grad_output.shape[3]
    og = outputs // groups
    grad = np.empty((*kernel_size, cg, outputs), x.dtype)
    for g in range(groups):
        some = slice(g * og, (g + 1) * og)
        _outer(x[..., g * cg : (g + 1) * cg], grad_output[..., some], grad[..., some].reshape(-1, og), windows)
    return grad


@dataclass(frozen=True, slots=True, kw_only=True)
class Residue:
    """Along one axis, the pixels first, first + s, first + 2s... and what they see of the output.

    Attributes:
        first: the first pixel.
        taps: the taps through which they see it, in reverse order.
        origin: the output that `first` sees through the first of these taps.
        dilation: outputs from one of these taps to the next.
    """

    first: int
    taps: slice
    origin: int
    dilation: int


def _residues(size: int, k: int, s: int, before: int, d: int) -> list[Residue]:
    """The residues of `size` pixels for k taps, stride s, padding `before` and dilation d.

    Pixel first + s t sees tap a = a0 + q m in output t + (first + p - d a0) / s - (d q / s) m.
    """
    q = s // math.gcd(s, d)
    found = []
    for first in range(min(s, size)):
        a0 = next((a for a in range(min(q, k)) if (first + before - d * a) % s == 0), k)
        last = max(range(a0, k, q), default=None)
        if last is None:
            found.append(Residue(first=first, taps=slice(0, 0), origin=0, dilation=1))
        else:
            taps = slice(last, a0 - 1 if a0 else None, -q)
            found.append(Residue(first=first, taps=taps, origin=(first + before - d * last) // s, dilation=d * q // s))
    return found


def _windows_tile_the_image(
    grad_output: Array, w: Array, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> bool:
    """Whether every pixel lies in one window: a mask head's transposed convolution, 2 x 2 with stride 2."""
    size = tuple(windows * step for windows, step in zip(grad_output.shape[1:3], stride, strict=True))
    return (
        stride != (1, 1)
        and w.shape[:2] == stride
        and size == tuple(input_size)
        and dilation == (1, 1)
        and not np.any(padding)
    )


def _side_by_side(grad_output: Array, w: Array) -> Array:
    """The gradient to the input where windows tile the image: one product for all taps, whose rows are then put apart."""
    n, ho, wo, outputs = grad_output.shape
    kh, kw, channels, _ = w.shape
    weights = w.transpose(3, 0, 1, 2).reshape(outputs, -1)  # O kh·kw·C
    grad = np.empty((n, ho * kh, wo * kw, channels), grad_output.dtype)
    lines, pixels = grad_output.reshape(n * ho, wo, outputs), grad.reshape(n * ho, kh, wo, kw * channels)

    def fill(some: Sequence[slice]) -> None:
        for tile in some:
            part = lines[tile].reshape(-1, outputs)
            product = scratch("grads.product", (len(part), weights.shape[1]), grad.dtype)
            np.matmul(part, weights, out=product)
            pixels[tile] = product.reshape(-1, wo, kh, kw * channels).swapaxes(1, 2)

    if grad.size:
        spread(fill, split(runs(n * ho, min(n * ho, -(-grad.nbytes // patches.TILE_BYTES)))))
    return grad


def _scatter(
    grad_output: Array, w: Array, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    """The gradient to the input tap by tap: for an output so small that most windows of it would hold only padding."""
    n, ho, wo, _ = grad_output.shape
    kh, kw, cg, outputs = w.shape
    og = outputs // groups
    (top, bottom), (left, right) = padding
    padded = np.zeros((n, input_size[0] + top + bottom, input_size[1] + left + right, groups * cg), grad_output.dtype)
    for a in range(kh):
        rows = slice(a * dilation[0], a * dilation[0] + (ho - 1) * stride[0] + 1, stride[0])
        for b in range(kw):
            columns = slice(b * dilation[1], b * dilation[1] + (wo - 1) * stride[1] + 1, stride[1])
            for g in range(groups):
                part = grad_output[..., g * og : (g + 1) * og].reshape(-1, og)
                tap = part @ w[a, b, :, g * og : (g + 1) * og].T
                padded[:, rows, columns, g * cg : (g + 1) * cg] += tap.reshape(n, ho, wo, cg)
    return padded[:, top : top + input_size[0], left : left + input_size[1]]


def _outer(x: Array, g: Array, out: Array, windows: Windows) -> None:
    """Fill `out`, (kh · kw · C, O), with the sum over windows of their outer products with g's pixels."""
    x, g, windows = one_tall_image(x, g, windows)
    # every tile has its own product of that shape, which is added to the others: a tile must be larger
    tiles = tiles_of(x, windows, max(patches.TILE_BYTES, 4 * out.size * out.itemsize), least=1)
    if not tiles:
        out[...] = 0
        return
    pieces = split(tiles)
    totals = [out, *(np.empty(out.shape, out.dtype) for _ in pieces[1:])]

    def add_up(piece: int) -> None:
        total = totals[piece]
        for position, (tile, matrix) in enumerate(matrices(x, windows, pieces[piece])):
            part = g[tile].reshape(-1, g.shape[3])
            if position == 0:
                _multiply_transposed(matrix, part, total)
            else:
                product = scratch("grads.product", total.shape, total.dtype)
                _multiply_transposed(matrix, part, product)
                total += product

    spread(add_up, range(len(pieces)))
    for other in totals[1:]:
        out += other


def _multiply_transposed(a: Array, b: Array, out: Array) -> None:
    """:math:`a^T b` of long a, (P, K), and b, (P, O).

    A BLAS packs long matrices piece by piece, which for few columns takes longer than the product. So it gets them in
    pieces that are small enough to stay where they are.
    """
    (pixels, k), outputs = a.shape, b.shape[1]
    at_once = max(UNPACKED // (k * outputs), 1)
    number = pixels // at_once if k * outputs <= THIN else 0
    if number < 2:
        np.matmul(a.T, b, out=out)
        return
    whole = number * at_once
    left, right = (m[:whole].reshape(number, at_once, -1) for m in (a, b))
    products = right.swapaxes(1, 2) @ left  # number O K: with the few outputs first, rows are long
    out[...] = products.sum(axis=0).T
    if whole < pixels:
        out += a[whole:].T @ b[whole:]
