"""How the inputs of the golden vectors under matterport/ are drawn: each from its own name, so only results are stored.

The results were computed by TensorFlow 2.15.1 and Keras 2.15 on a CPU.
"""

import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "matterport"


def rng(key: str) -> np.random.Generator:
    """The generator that belongs to a name."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def normal(key: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Normal numbers, rounded to float32."""
    return (rng(key).standard_normal(shape) * scale + shift).astype(np.float32)


def uniform(key: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Uniform numbers, rounded to float32."""
    return rng(key).uniform(low, high, shape).astype(np.float32)


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file of results."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def image(key: str, height: int, width: int) -> np.ndarray:
    """An image of bytes: a mosaic of 8 x 8 pixels with noise."""
    draw = rng("image/" + key)
    tiles = draw.integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    noise = draw.integers(-20, 21, (height, width, 3))
    mosaic = tiles.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return np.clip(mosaic + noise, 0, 255).astype(np.uint8)


def shape_masks(specs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The masks (G, H, W) of several shapes, each row of `specs` as :func:`shape_mask` takes it."""
    return np.stack([shape_mask(size, *spec) for spec in specs.tolist()])


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A boolean array from its packed bits."""
    return np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape).astype(bool)


def assert_stored(golden: dict[str, np.ndarray], name: str, values: np.ndarray, atol: float = 0.0) -> None:
    """`values` are those stored under `name`: all of a small array; of a large one every step-th and its sums."""
    if name in golden:
        np.testing.assert_allclose(values, golden[name], rtol=0, atol=atol)
    else:
        np.testing.assert_array_equal(values.shape, golden[f"{name}.shape"])
        sample = values.reshape(-1)[:: int(golden[f"{name}.step"])]
        np.testing.assert_allclose(sample, golden[f"{name}.s"], rtol=0, atol=atol)
    np.testing.assert_allclose(checks(values), golden[f"{name}.chk"], rtol=1e-12, atol=atol * values.size)


def checks(values: np.ndarray) -> np.ndarray:
    """Sum, sum of absolute values and of squares, least, greatest, and a sum weighted by position."""
    flat = np.asarray(values, np.float64).reshape(-1)
    if not flat.size:
        return np.zeros(6)
    weights = (np.arange(flat.size) * 40503) % 65536 / 65536
    return np.array([flat.sum(), abs(flat).sum(), (flat * flat).sum(), flat.min(), flat.max(), (flat * weights).sum()])


def shape_mask(size: tuple[int, int], kind: int, cy: int, cx: int, ry: int, rx: int) -> np.ndarray:
    """The mask of a shape of radii ry, rx about (cy, cx), border included; `kind` is the code of a letter.

    e is an ellipse, r a rectangle, d a diamond, t a triangle that stands on its base.
    """
    y, x = np.ogrid[: size[0], : size[1]]
    y, x = y - cy, x - cx
    return {
        "e": (y * rx) ** 2 + (x * ry) ** 2 <= (rx * ry) ** 2,
        "r": (abs(y) <= ry) & (abs(x) <= rx),
        "d": abs(y) * rx + abs(x) * ry <= rx * ry,
        "t": (abs(y) <= ry) & (2 * ry * abs(x) <= rx * (y + ry)),
    }[chr(kind)]
