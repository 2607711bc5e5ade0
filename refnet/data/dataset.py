"""What a dataset is: numbered samples, each an image with its objects."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import DataError
from refnet.rcnn.structures import GroundTruth


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image and its objects.

    Attributes:
        image: (H, W, C), 0 to 255; three channels are red, green, blue.
        truth: the objects, in pixels of `image`.
        image_id: the dataset's number for the image, 0 or more.
        file_name: the image's name relative to the folder of images.

    Raises:
        DataError: the masks haven't the image's height and width, or a box reaches beyond it.
    """

    image: UInt8[Array, "H W C"]
    truth: GroundTruth
    image_id: int
    file_name: str

    def __post_init__(self) -> None:
        height, width = self.image.shape[:2]
        masks, boxes = self.truth.masks, self.truth.boxes
        if masks is not None and masks.shape[1:] != (height, width):
            raise DataError(
                f"image {self.image_id}: masks must have the image's size {(height, width)}, got {masks.shape[1:]}"
            )
        if len(boxes) and (boxes.min() < 0 or boxes[:, 2].max() > width or boxes[:, 3].max() > height):
            raise DataError(f"image {self.image_id}: a box reaches beyond the image of {width}x{height} pixels")


@runtime_checkable
class Dataset(Protocol):
    """Samples by position, and what their classes are called.

    Class k, counted from 1 since 0 is the background, is named ``class_names[k - 1]`` and has the COCO category
    id ``category_ids[k - 1]``.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def category_ids(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def checked_index(index: int, count: int) -> int:
    """`index` from 0; negative ones count from the end.

    Raises:
        IndexError: it is out of range; this is also what ends ``for sample in dataset``.
    """
    if not -count <= index < count:
        raise IndexError(f"a dataset of {count} samples has no sample {index}")
    return index % count
