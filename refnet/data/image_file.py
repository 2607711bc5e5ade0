"""Pixels from image files of any kind."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import DataError


def read_image(
    path: str | PathLike[str], *, channels: int | None, size: tuple[int, int] | None = None
) -> UInt8[Array, "H W C"]:
    """The pixels of an image file.

    Args:
        channels: 3 for RGB, 1 for gray, None for as many as the file holds. Transparency is dropped by the first two;
            of 16 bits the upper 8 are kept.
        size: the (height, width) that it must have.

    Choice: a photo's EXIF orientation is applied, as every viewer does, except where only the pixels as stored have
    the `size` that is expected.

    Raises:
        DataError: the file is missing or can't be decoded, or its size isn't `size`.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    try:
        with Image.open(path) as file:
            file.load()
            image: Image.Image = file
            if (image.height, image.width) != size:
                image = ImageOps.exif_transpose(image)
            if size is not None and (image.height, image.width) != size:
                raise DataError(
                    f"{path}: expected {size[1]}x{size[0]} pixels as the annotations say, got {file.width}x{file.height}"
                )
            pixels = np.asarray(_to_mode(image, channels, path))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: can't be decoded: {error}") from None
    return pixels.reshape(*pixels.shape[:2], -1)


def _to_mode(image: Any, channels: int | None, path: Path) -> Any:
    """A Pillow image with 8 bits for each of the channels asked for."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, or 16 bits in 32
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise DataError(f"{path}: expected at most 16 bits a channel, got values {wide.min()} to {wide.max()}")
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{path}: expected integer pixels, got floating point")
    if image.mode in ("P", "PA"):  # a palette's numbers are no brightness
        transparent = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
    if channels == 3:
        return image.convert("RGB")
    if channels == 1:
        return image.convert("L")
    return image.convert("L") if image.mode == "1" else image
