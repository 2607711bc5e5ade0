"""Resizing images: nearest neighbour, bilinear and bicubic, channels last.

Both are separable: rows and columns are resampled by one small matrix each,

.. math:: y_{n} = Y\\, x_{n}\\, X^{\\top} \\qquad \\bar x_n = Y^{\\top} \\bar y_n X

so the adjoint is the same two matrices transposed. For bilinear interpolation a row of Y holds the hat function
at the distance of each source row from the sampled coordinate, for bicubic interpolation the cubic convolution kernel
(Keys 1981, eq. 4); for nearest neighbour it holds a single one.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, namespace
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ShapeError
from refnet.kernel_op import kernel_op
from refnet.ops.conv2d import Pair, as_pair


class Separable(Function):
    """Resample the rows by one matrix and the columns by another."""

    def forward(
        self, x: Float[Array, "N H W C"], *, rows: Float[Array, "P H"], columns: Float[Array, "Q W"]
    ) -> Float[Array, "N P Q C"]:
        xp = namespace(x)
        self.rows, self.columns = xp.asarray(rows, dtype=x.dtype), xp.asarray(columns, dtype=x.dtype)
        return _resample(x, self.rows, self.columns)

    def backward(self, grad_output: Array) -> Gradients:
        return (_resample(grad_output, self.rows.T, self.columns.T),)


def _resample(
    x: Float[Array, "N H W C"], rows: Float[Array, "P H"], columns: Float[Array, "Q W"]
) -> Float[Array, "N P Q C"]:
    """Rows first; of one channel, every image is one product for the columns too, instead of one for each row."""
    n, h, w, c = x.shape
    y: Array = rows @ x.reshape(n, h, w * c)  # N P W·C
    if c == 1:
        y = (y @ columns.T)[..., None]
    else:
        y = columns @ y.reshape(n, len(rows), w, c)  # N P Q C
    return y


@kernel_op
def resize_bilinear_forward(x: Float[Array, "N H W C"], *, size: Pair, align_corners: bool) -> Float[Array, "N P Q C"]:
    """`x` resampled to `size` by the two matrices of :func:`bilinear`."""
    return _resample(x, *_bilinear_matrices((x.shape[1], x.shape[2]), size, align_corners, x.dtype))


@kernel_op
def resize_bilinear_grad(
    grad_output: Float[Array, "N P Q C"], *, source: Pair, align_corners: bool
) -> Float[Array, "N H W C"]:
    """The adjoint of resize_bilinear_forward for images of `source` (rows, columns)."""
    size = (grad_output.shape[1], grad_output.shape[2])
    rows, columns = _bilinear_matrices(source, size, align_corners, grad_output.dtype)
    return _resample(grad_output, rows.T, columns.T)


def _bilinear_matrices(
    source: Pair, size: Pair, align_corners: bool, dtype: np.dtype[Any]
) -> tuple[Float[Array, "P H"], Float[Array, "Q W"]]:
    rows, columns = (
        bilinear(s, t, align_corners=align_corners).astype(dtype) for s, t in zip(source, size, strict=True)
    )
    return rows, columns


@kernel_op
def resize_nearest_forward(x: Float[Array, "N H W C"], *, size: Pair) -> Float[Array, "N P Q C"]:
    """`x` resized to `size`, every pixel a copy of the one that :func:`nearest` says."""
    factors = _whole_factors((x.shape[1], x.shape[2]), size)
    if factors is not None:
        return x.repeat(factors[0], axis=1).repeat(factors[1], axis=2)
    rows, columns = (nearest(*extents) for extents in zip(x.shape[1:3], size, strict=True))
    return x.take(rows, axis=1).take(columns, axis=2)


@kernel_op
def resize_nearest_grad(grad_output: Float[Array, "N P Q C"], *, source: Pair) -> Float[Array, "N H W C"]:
    """The adjoint of resize_nearest_forward for images of `source` (rows, columns): the copies' gradients, added up."""
    size = (grad_output.shape[1], grad_output.shape[2])
    factors = _whole_factors(source, size)
    if factors is not None:
        grad = grad_output[:, :: factors[0], :: factors[1]].copy()
        for a in range(factors[0]):
            for b in range(factors[1]):
                if (a, b) != (0, 0):
                    grad += grad_output[:, a :: factors[0], b :: factors[1]]
        return grad
    rows, columns = (np.eye(s, dtype=grad_output.dtype)[nearest(s, t)] for s, t in zip(source, size, strict=True))
    return _resample(grad_output, rows.T, columns.T)


@kernel_op
def upsample_add_forward(coarse: Float[Array, "N H W C"], fine: Float[Array, "N P Q C"]) -> Float[Array, "N P Q C"]:
    """`fine`, plus `coarse` resized to its size as resize_nearest_forward does."""
    total: Array = fine + resize_nearest_forward.specification(coarse, size=(fine.shape[1], fine.shape[2]))
    return total


class ResizeBilinear(Function):
    """resize_bilinear_forward and its gradient."""

    def forward(self, x: Float[Array, "N H W C"], *, size: Pair, align_corners: bool) -> Float[Array, "N P Q C"]:
        self.source, self.align_corners = (x.shape[1], x.shape[2]), align_corners
        return resize_bilinear_forward(x, size=size, align_corners=align_corners)

    def backward(self, grad_output: Array) -> Gradients:
        return (resize_bilinear_grad(grad_output, source=self.source, align_corners=self.align_corners),)


class ResizeNearest(Function):
    """resize_nearest_forward and its gradient."""

    def forward(self, x: Float[Array, "N H W C"], *, size: Pair) -> Float[Array, "N P Q C"]:
        self.source = (x.shape[1], x.shape[2])
        return resize_nearest_forward(x, size=size)

    def backward(self, grad_output: Array) -> Gradients:
        return (resize_nearest_grad(grad_output, source=self.source),)


class UpsampleAdd(Function):
    """upsample_add_forward and its two gradients: resize_nearest_grad, and the gradient itself."""

    def forward(self, coarse: Float[Array, "N H W C"], fine: Float[Array, "N P Q C"]) -> Float[Array, "N P Q C"]:
        self.source = (coarse.shape[1], coarse.shape[2])
        return upsample_add_forward(coarse, fine)

    def backward(self, grad_output: Array) -> Gradients:
        return resize_nearest_grad(grad_output, source=self.source) if self.needs_grad[0] else None, grad_output


def _whole_factors(source: Pair, size: Pair) -> Pair | None:
    """By what whole numbers both extents grow, or None if one doesn't."""
    return None if size[0] % source[0] or size[1] % source[1] else (size[0] // source[0], size[1] // source[1])


def nearest(source: int, size: int) -> Int[np.ndarray, " P"]:
    """Which of `source` pixels each of `size` pixels copies: floor(i · source / size), in whole numbers."""
    return np.arange(size) * source // size


def bilinear(source: int, size: int, *, align_corners: bool) -> Float[np.ndarray, "P S"]:
    """The matrix that samples `source` pixels at `size` places: the hat function 1 - |distance| around each."""
    if align_corners:
        at = np.arange(size) * (source - 1) / max(size - 1, 1)
    else:
        at = (np.arange(size) + 0.5) * source / size - 0.5  # the centre of pixel i is i + 1/2
    at = at.clip(0, source - 1)
    hat: Array = np.maximum(0, 1 - abs(at[:, None] - np.arange(source)))
    return hat


def bicubic(source: int, size: int) -> Float[np.ndarray, "P S"]:
    """The matrix that samples `source` pixels at `size` places: the cubic kernel around each, over four pixels.

    A pixel beyond the outermost one is taken for a copy of it, so the outermost ones weigh what those would.
    """
    at = (np.arange(size) + 0.5) * source / size - 0.5
    taps = np.floor(at)[:, None] + np.arange(-1, 3)  # P 4
    weights: Array = np.zeros((size, source))
    places = taps.clip(0, source - 1).astype(np.int64)
    np.add.at(weights, (np.arange(size)[:, None], places), cubic_kernel(at[:, None] - taps))
    return weights


def cubic_kernel(distances: Float[np.ndarray, "*D"]) -> Float[np.ndarray, "*D"]:
    """Keys' kernel at distances of up to 2 pixels.

    .. math::
        k(d) = \\begin{cases}
            (a + 2) |d|^3 - (a + 3) |d|^2 + 1 & |d| \\le 1 \\\\
            a |d|^3 - 5 a |d|^2 + 8 a |d| - 4 a & 1 < |d| \\le 2
        \\end{cases}

    Choice: the slope a at distance 1 is -3/4 (PyTorch, OpenCV); TensorFlow and Pillow take -1/2, which Keys shows to be
    exact for parabolas.
    """
    a, d = -0.75, abs(distances)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)


def resize_nearest(x: Tensor, size: int | Pair) -> Tensor:
    """Resize images to `size` (rows, columns), every pixel a copy of one source pixel.

    Choice: pixel i copies source pixel floor(i H / Ho), PyTorch's "nearest", which feature pyramids were trained
    with; "nearest-exact" copies the one under the centre, floor((i + 1/2) H / Ho). Whole factors give the same.

    Raises:
        ShapeError: x isn't (N, H, W, C), or has no pixels.
        ArgumentError: `size` isn't positive.
    """
    return ResizeNearest()(x, size=_checked(x, size, "resize_nearest"))


def upsample_nearest(x: Tensor, factor: int | Pair) -> Tensor:
    """Repeat every pixel `factor` times along rows and columns.

    Raises:
        ShapeError: x isn't (N, H, W, C), or has no pixels.
        ArgumentError: `factor` isn't positive.
    """
    vertical, horizontal = as_pair(factor, "upsample_nearest: factor")
    _checked(x, 1, "upsample_nearest")
    return resize_nearest(x, (x.shape[1] * vertical, x.shape[2] * horizontal))


def upsample_add(coarse: Tensor, fine: Tensor) -> Tensor:
    """`fine` plus `coarse`, whose pixels are repeated as :func:`resize_nearest` does to the size of `fine`.

    Raises:
        ShapeError: they aren't (N, H, W, C) with the same N and C, or have no pixels.
    """
    _checked(coarse, 1, "upsample_add")
    _checked(fine, 1, "upsample_add")
    if (coarse.shape[0], coarse.shape[3]) != (fine.shape[0], fine.shape[3]):
        raise ShapeError(f"upsample_add: expected the same images and channels, got {coarse.shape} and {fine.shape}")
    return UpsampleAdd()(coarse, fine)


def resize_bilinear(x: Tensor, size: int | Pair, *, align_corners: bool = False) -> Tensor:
    """Resize images to `size` (rows, columns), interpolating between the four pixels around each sample.

    Choice: sample i lies at (i + 1/2) H / Ho - 1/2 in units of pixel centres, so that the outer edges of both
    images coincide, and is moved to the nearest centre if it lies outside of all. With `align_corners` it lies at
    i (H - 1) / (Ho - 1) instead, so that the outer centres coincide. Neither averages when it shrinks.

    Raises:
        ShapeError: x isn't (N, H, W, C), or has no pixels.
        ArgumentError: `size` isn't positive.
    """
    return ResizeBilinear()(x, size=_checked(x, size, "resize_bilinear"), align_corners=align_corners)


def resize_bicubic(x: Tensor, size: int | Pair) -> Tensor:
    """Resize images to `size` (rows, columns) by cubic convolution, which may leave the range of the pixels.

    Choice: samples lie as in :func:`resize_bilinear` without `align_corners`, but aren't moved to the outer centres:
    beyond these the outermost pixels are repeated. It doesn't average when it shrinks.

    Raises:
        ShapeError: x isn't (N, H, W, C), or has no pixels.
        ArgumentError: `size` isn't positive.
    """
    rows, columns = _checked(x, size, "resize_bicubic")
    return Separable()(x, rows=bicubic(x.shape[1], rows), columns=bicubic(x.shape[2], columns))


def _checked(x: Tensor, size: int | Pair, what: str) -> Pair:
    if x.ndim != 4 or x.shape[1] == 0 or x.shape[2] == 0:
        raise ShapeError(f"{what}: expected x (N, H, W, C) with at least one pixel, got {x.shape}")
    return as_pair(size, f"{what}: size")
