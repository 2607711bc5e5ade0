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
