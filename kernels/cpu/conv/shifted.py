"""Convolution of stride 1 tap by tap, each added straight to the result: nothing is copied side by side.

In an image with its padding, row after row, the pixels that a tap reads are those of the result, shifted. So a tap of all
pixels is one product, of a view, and BLAS adds it to the others (C = A B + C). Between the rows of the result lie a few
numbers of windows that hang over the edge, which are computed along and passed over.
"""

from collections.abc import Callable, Sequence

import numpy as np

from refnet.arrays import Array
from refnet.kernels.cpu import blas
from refnet.kernels.cpu.conv.patches import Tile, Windows, fill_padded, tiles_of
from refnet.kernels.cpu.scratch import scratch
from refnet.kernels.cpu.threads import count, split, spread

TILE_BYTES = 1 << 20  # of a tile's pixels and sums, which stay in cache while the taps pass over them


def correlate_shifted(
    x: Array, w: Array, y: Array, windows: Windows, finish: Callable[[Tile], None], tile_bytes: int
) -> None:
    """Fill y, a view of any strides, with windows of stride 1 of x times w; `finish` is called with each tile.

    Args:
        x, w, y: (N, H, W, C), (kh, kw, C, O) and (N, Ho, Wo, O).
        windows: of x.
        finish: what follows.
        tile_bytes: of the matrix of patches that a tile would have.
    """
    channels, outputs = w.shape[2:]
    (down, across), item = w.strides[2:], w.itemsize
    if not (across == item and down >= outputs * item) and not (down == item and across >= channels * item):
        w = np.ascontiguousarray(w)  # BLAS takes neither
    width = windows.extent(windows.size[1], 1)
    reach = windows.extent(1, 0) - 1, windows.extent(1, 1) - 1  # of a window, beyond its first pixel

    def fill(some: Sequence[Tile]) -> None:
        for images, rows in some:
            n, r = images.stop - images.start, rows.stop - rows.start
            lines = n * (r + reach[0]) * width
            pixels = scratch("shifted.pixels", (lines, channels), x.dtype)
            padded = pixels.reshape(n, r + reach[0], width, channels)
            fill_padded(padded, x[images], (windows.origin[0] + rows.start, windows.origin[1]))
            sums = scratch("shifted.sums", (lines, outputs), x.dtype)
            length = lines - reach[0] * width - reach[1]
            for a, b in np.ndindex(*windows.kernel_size):
                start = a * windows.dilation[0] * width + b * windows.dilation[1]
                blas.multiply(pixels[start : start + length], w[a, b], sums[:length], beta=float(a + b > 0))
            y[images, rows] = sums.reshape(n, r + reach[0], width, outputs)[:, :r, : windows.size[1]]
            finish((images, rows))

    spread(fill, split(tiles_of(x, windows, tile_bytes, least=count())))
