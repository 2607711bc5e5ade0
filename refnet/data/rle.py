"""COCO's run-length encoding of masks, and its polygons, with every input checked.

A mask of H x W is read column by column, (0, 0), (1, 0), ... (H - 1, 0), (0, 1), ..., and stands as the lengths of
its runs, alternately of 0 and of 1, beginning with 0: ``counts``. The compressed form writes each length from the
fourth on as its difference from the length two before, as characters '0' to 'o' with six bits each: five of the
number, lowest first, and one that says whether another character follows (``cocoapi/common/maskApi.c``).

pycocotools reads and writes the same, but trusts what it reads: a malformed string or an absurd polygon makes it
overrun its memory. Files come from anywhere, so decoding is done here, and polygons reach pycocotools checked.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array
from refnet.errors import DataError

# pycocotools walks along a polygon in steps of a fifth of a pixel and stores every step. The outline of a photo's
# most intricate object measures some 20,000 pixels.
MAX_OUTLINE = 1_000_000
PIECE_BYTES = 4 << 20  # of masks that are encoded together: more would only take memory
MOST_AT_ONCE = 200  # pycocotools 2.0 counts some of its lists in a byte


def decode_counts(counts: Int[Array, " runs"], height: int, width: int) -> Bool[Array, "H W"]:
    """The mask whose run lengths are `counts`, as :func:`run_lengths` returned them for the same size."""
    values = np.arange(len(counts)) % 2 == 1
    columns: Array = np.repeat(values, counts).reshape(width, height)
    return columns.T


def run_lengths(rle: Any, height: int, width: int) -> Int[Array, " runs"]:
    """The run lengths of a COCO RLE, ``{"size": [height, width], "counts": list or string}``.

    Raises:
        DataError: it hasn't that form, its size isn't (height, width), or its runs don't add up to it.
    """
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise DataError(f"expected a run-length encoding with the keys 'size' and 'counts', got {_short(rle)}")
    if rle["size"] != [height, width]:
        raise DataError(f"expected the image's size [{height}, {width}], got {_short(rle['size'])}")
    counts = rle["counts"]
    if isinstance(counts, str):
        lengths = _decompress(counts)
    elif isinstance(counts, list) and all(type(c) is int for c in counts):
        if any(not 0 <= c <= height * width for c in counts):
            raise DataError(f"expected counts from 0 to {height * width}, got {_short(counts)}")
        lengths = np.array(counts, np.int64)
    else:
        raise DataError(f"expected counts that are a string or a list of integers, got {_short(counts)}")
    if (lengths < 0).any() or int(lengths.sum()) != height * width:
        raise DataError(
            f"expected counts of 0 or more that add up to {height} x {width} = {height * width}, "
            f"got {_short(lengths.tolist())} with the sum {int(lengths.sum())}"
        )
    return lengths


def _decompress(text: str) -> Int[Array, " runs"]:
    if not text.isascii():
        raise DataError(f"expected counts of the characters '0' to 'o', got {_short(text)}")
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    if ((codes < 0) | (codes > 63)).any():
        raise DataError(f"expected counts of the characters '0' to 'o', got {_short(text)}")
    if not len(codes):
        return codes
    last = np.flatnonzero(codes & 32 == 0)  # of each number, the position of its last character
    if not len(last) or last[-1] != len(codes) - 1:
        raise DataError(f"counts end in the middle of a number: {_short(text)}")
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if digits.max() > 7:  # 35 bits: more than any image's pixels
        raise DataError(f"expected counts of at most 7 characters each, got {int(digits.max())}: {_short(text)}")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, digits))
    numbers = np.add.reduceat((codes & 31) << shifts, first)
    numbers -= np.where(codes[last] & 16, np.int64(1) << 5 * digits, 0)  # two's complement of 5 * digits bits
    # From the fourth number on, the difference from the one two before: sums over the odd and the even positions.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def encode(mask: Bool[Array, "H W"]) -> dict[str, Any]:
    """The compressed run-length encoding of a mask, ready for JSON."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def encode_each(masks: Bool[Array, "N H W"] | Float[Array, "N H W"], *, threshold: float) -> list[dict[str, Any]]:
    """:func:`encode` of each mask of a stack, several at a time; of soft masks, what is at least `threshold`."""
    from pycocotools import mask as coco_mask

    count, height, width = masks.shape
    some = min(MOST_AT_ONCE, max(1, PIECE_BYTES // max(1, height * width)))
    encoded: list[dict[str, Any]] = []
    for start in range(0, count, some):
        piece = masks[start : start + some]
        piece = piece if piece.dtype == bool else piece >= threshold
        encoded += coco_mask.encode(np.asfortranarray(piece.transpose(1, 2, 0), np.uint8))
    return [{"size": [height, width], "counts": entry["counts"].decode("ascii")} for entry in encoded]


def polygons(parts: Any) -> list[Float[Array, "_ 2"]]:
    """The outlines of an object, ``[[x, y, x, y, ...], ...]`` in pixels, as arrays of their corners.

    Raises:
        DataError: it hasn't that form; a part has fewer than three corners, a number that isn't finite, or an
            outline that is absurdly long.
    """
    if not isinstance(parts, list) or not parts:
        raise DataError(f"expected at least one polygon, got {_short(parts)}")
    outlines = []
    for index, part in enumerate(parts):
        if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
            length = f"{len(part)} numbers" if isinstance(part, list) else _short(part)
            raise DataError(f"polygon {index}: expected x and y of at least three corners, got {length}")
        corners = numbers(part, f"polygon {index}").reshape(-1, 2)
        farthest = np.abs(corners).max()
        steps = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1) if farthest < MAX_OUTLINE else farthest
        if np.sum(steps) > MAX_OUTLINE:
            raise DataError(f"polygon {index}: expected an outline of at most {MAX_OUTLINE} pixels, got {_short(part)}")
        outlines.append(corners)
    return outlines


def rasterize(outlines: Sequence[Float[Array, "_ 2"]], height: int, width: int) -> Bool[Array, "H W"]:
    """The union of the insides of polygons that :func:`polygons` returned, exactly as the COCO tools fill them."""
    from pycocotools import mask as coco_mask

    parts = [outline.reshape(-1).tolist() for outline in outlines]
    filled = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    return decode_counts(_decompress(filled["counts"].decode("ascii")), height, width)


def numbers(values: Any, what: str) -> Float[Array, " n"]:
    """A list of finite numbers from a JSON file as an array.

    Raises:
        DataError: it isn't one.
    """
    try:
        if isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values):
            return np.array(values, np.float64)
    except OverflowError:  # an integer beyond the range of float64
        pass
    raise DataError(f"{what}: expected finite numbers, got {_short(values)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
