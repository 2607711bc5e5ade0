"""Matrix instructions against NumPy's product; operands are small integers, so every sum is exact."""

from pathlib import Path

import numpy as np
import pytest

from refnet.errors import KernelFault
from refnet.kernels import emulator
from refnet.kernels.cuda.program import Program
from refnet.kernels.emulator import running

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no g++: nothing can be emulated")

COLUMNS = 24
WGMMA = {"tf32": f"wgmma<false, {COLUMNS}>", "bf16": f"wgmma<true, {COLUMNS}>"}
CORES = Program(
    Path(__file__).with_name("tensor_core.cu"),
    ["mma_bf16", "mma_tf32", "ldmatrix", "wgmma_mistakes", *WGMMA.values()],
)
CHUNK = 16  # bytes


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-9, 10, shape).astype(np.float32)


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """The upper halves; exact for small integers."""
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("transposed", [False, True])
def test_mma_of_bfloat16_with_ldmatrix(rng: np.random.Generator, transposed: bool) -> None:
    a, b, d = integers(rng, 16, 16), integers(rng, 16, 8), np.empty((16, 8), np.float32)
    given = bf16_bits(b if transposed else b.T)
    with running(mode="check"):
        CORES.launch(np, "mma_bf16", (1,), (32,), (bf16_bits(a), given, np.int32(transposed), d), outputs=(3,))
    np.testing.assert_array_equal(d, a @ b)


def test_mma_of_tf32_passes_over_the_lowest_13_bits(rng: np.random.Generator) -> None:
    a, b, d = integers(rng, 16, 8), integers(rng, 8, 8), np.empty((16, 8), np.float32)
    noisy = a.view(np.uint32) | rng.integers(0, 1 << 13, a.shape, np.uint32)
    with running(mode="check"):
        CORES.launch(np, "mma_tf32", (1,), (32,), (noisy, b.view(np.uint32), d), outputs=(2,))
    np.testing.assert_array_equal(d, a @ b)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(rng: np.random.Generator, matrices: int, transposed: bool) -> None:
    x = rng.integers(0, 1 << 16, (matrices, 8, 8)).astype(np.uint16)
    y = np.empty((matrices, 32), np.uint32)
    with running(mode="check"):
        CORES.launch(np, "ldmatrix", (1,), (32,), (x, np.int32(matrices), np.int32(transposed), y), outputs=(3,))
    fragments = x.swapaxes(1, 2) if transposed else x
    np.testing.assert_array_equal(y.view(np.uint16).reshape(matrices, 8, 8), fragments)


def swizzled(offsets: np.ndarray, width: int) -> np.ndarray:
    """CUTLASS's Swizzle<log2(width / 16), 4, 3> of byte offsets in a tile that is aligned."""
    return offsets ^ ((offsets & (width // CHUNK - 1) << 7) >> 3)


def k_major(rows: int, depth: int, item: int, width: int) -> tuple[np.ndarray, int, int]:
    """Offsets in bytes of the elements (row, k) of a tile; the leading and stride offsets of its descriptor."""
    r, at = np.mgrid[:rows, : depth * item : item]  # rows, bytes along the depth
    if width == CHUNK:  # 8 rows x 16 bytes after one another, first along the rows
        return r % 8 * CHUNK + r // 8 * 128 + at // CHUNK * (rows * CHUNK) + at % CHUNK, rows * CHUNK, 128
    stride = 8 * width
    return swizzled(r % 8 * width + r // 8 * stride + at % width, width), 16, stride


def transposed_tile(rows: int, depth: int, width: int) -> tuple[np.ndarray, int, int]:
    """The same of a tile of bfloat16 whose rows are contiguous."""
    r, k = np.mgrid[:rows, :depth]
    if width == CHUNK:
        stride, leading = 128, rows * CHUNK
        return r % 8 * 2 + r // 8 * stride + k % 8 * CHUNK + k // 8 * leading, leading, stride
    across, stride = width // 2, -(-rows * 2 // width) * 8 * width
    leading = 8 * width
    return swizzled(r % across * 2 + r // across * leading + k % 8 * width + k // 8 * stride, width), leading, stride


def descriptor(start: int, leading: int, stride: int, width: int) -> int:
    layout = {16: 0, 128: 1, 64: 2, 32: 3}[width]
    return start // 16 | leading // 16 << 16 | stride // 16 << 32 | layout << 62


def image_of(pieces: list[tuple[int, np.ndarray, np.ndarray]], size: int) -> np.ndarray:
    """Shared memory that holds each piece's values at a start plus their offsets; NaN elsewhere."""
    image = np.full(size, 0xFF, np.uint8)
    for start, offsets, values in pieces:
        image.view(values.dtype)[(start + offsets) // values.itemsize] = values
    return image


def run_wgmma(
    dtype: str, a: int, b: int, image: np.ndarray, steps: int, step: tuple[int, int], transposed: int
) -> np.ndarray:
    d = np.empty((64, COLUMNS), np.float32)
    arguments = (
        image.view(np.uint32), np.int32(image.nbytes // 16), np.uint64(a), np.uint64(b), np.int32(steps),
        np.uint64(step[0]), np.uint64(step[1]), np.int32(transposed), d,
    )  # fmt: skip
    with running(mode="check"):
        CORES.launch(np, WGMMA[dtype], (1,), (128,), arguments, shared=image.nbytes, outputs=(8,))
    return d


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", ["tf32", "bf16"])
def test_wgmma_of_a_tile_as_deep_as_its_swizzle(rng: np.random.Generator, dtype: str, width: int) -> None:
    """A step moves the start by 32 bytes within the swizzled row, as kernels do."""
    item = 4 if dtype == "tf32" else 2
    depth = max(width, 32) // item
    a, b = integers(rng, 64, depth), integers(rng, COLUMNS, depth)
    bits = bf16_bits if dtype == "bf16" else np.asarray
    offsets_a, leading_a, stride_a = k_major(64, depth, item, width)
    offsets_b, leading_b, stride_b = k_major(COLUMNS, depth, item, width)
    image = image_of([(0, offsets_a, bits(a)), (8192, offsets_b, bits(b))], 8192 + 4096)
    d = run_wgmma(
        dtype,
        descriptor(0, leading_a, stride_a, width),
        descriptor(8192, leading_b, stride_b, width),
        image,
        depth * item // 32,
        (2, 2),
        0,
    )
    np.testing.assert_array_equal(d, a @ b.T)


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("transposed", [1, 2, 3])
def test_wgmma_of_transposed_tiles(rng: np.random.Generator, transposed: int, width: int) -> None:
    a, b = integers(rng, 64, 16), integers(rng, COLUMNS, 16)
    tile_a = transposed_tile(64, 16, width) if transposed & 1 else k_major(64, 16, 2, width)
    tile_b = transposed_tile(COLUMNS, 16, width) if transposed & 2 else k_major(COLUMNS, 16, 2, width)
    image = image_of([(0, tile_a[0], bf16_bits(a)), (8192, tile_b[0], bf16_bits(b))], 8192 + 8192)
    d = run_wgmma(
        "bf16", descriptor(0, *tile_a[1:], width), descriptor(8192, *tile_b[1:], width), image, 1, (0, 0), transposed
    )
    np.testing.assert_array_equal(d, a @ b.T)


MISTAKES = {
    "no proxy fence": (1, "racecheck", r"without a fence.proxy.async after it"),
    "no fence": (2, "racecheck", r"without a wgmma.fence before it"),
    "early read": (3, "initcheck", r"before wgmma.wait_group"),
    "overwritten": (4, "racecheck", r"was changed before it was waited for|races with a read"),
    "overwritten by another": (
        5,
        "racecheck",
        r"was written by thread .* before wgmma, which reads it, was waited for",
    ),
    "unaligned tile": (6, "memcheck", r"doesn't start where a swizzle of 128 bytes does"),
    "outside": (7, "memcheck", r"leads out of shared memory"),
    "different tiles": (8, "synccheck", r"issue different wgmma"),
    "no wait": (9, "initcheck", r"ends while its wgmma is under way"),
    "no barrier": (10, "initcheck|racecheck", r"wgmma"),
    "wait for too few": (11, "initcheck", r"before wgmma.wait_group"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_with_wgmma_is_found(name: str) -> None:
    mistake, kind, message = MISTAKES[name]
    d = np.zeros((64, 8), np.float32)
    with running(mode="check"), pytest.raises(KernelFault, match=message) as caught:
        CORES.launch(np, "wgmma_mistakes", (1,), (128,), (np.int32(mistake), d))
    assert caught.value.kind in kind.split("|")
    assert "tensor_core.cu:" in str(caught.value) or name == "no wait"


def test_without_a_mistake_wgmma_passes_under_every_schedule() -> None:
    for seed in range(5):
        d = np.zeros((64, 8), np.float32)
        with running(mode="check", seed=seed):
            CORES.launch(np, "wgmma_mistakes", (1,), (128,), (np.int32(0), d), outputs=(1,))
        np.testing.assert_array_equal(d, 8.0)


def test_sums_are_nan_until_they_are_waited_for() -> None:
    """Fast, nobody watches: the value itself must tell."""
    d = np.zeros((64, 8), np.float32)
    with running(mode="fast"):
        CORES.launch(np, "wgmma_mistakes", (1,), (128,), (np.int32(3), d))
    assert np.isnan(d[0, 0])
