"""What a dataset is: numbered samples, each an image with its objects."""

import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import DataError
from refnet.rcnn.structures import GroundTruth


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointScheme:
    """What the keypoints of a dataset's objects are called, and which of them belong together.

    Attributes:
        names: of each point, in the order of ``GroundTruth.keypoints``.
        skeleton: pairs of points, counted from 0, that a line joins in drawings.

    Raises:
        DataError: there are no names, a name occurs twice, or the skeleton names a point that isn't there.
    """

    names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if not count or len(set(self.names)) != count:
            raise DataError(f"keypoints: expected one or more different names, got {self.names}")
        for pair in self.skeleton:
            if not all(0 <= point < count for point in pair):
                raise DataError(f"keypoints: a skeleton's points must be 0 to {count - 1}, got {pair}")

    def __len__(self) -> int:
        return len(self.names)

    def mirrored(self) -> list[int]:
        """In the mirror image, which point stands in each place: "left" in a name becomes "right", and the reverse."""
        place = {name: index for index, name in enumerate(self.names)}
        return [place.get(_mirror(name), index) for index, name in enumerate(self.names)]


def _mirror(name: str) -> str:
    return re.sub("left|right", lambda side: "right" if side[0] == "left" else "left", name)


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
    id ``category_ids[k - 1]``. A dataset whose objects have keypoints says what these are in an attribute ``keypoints``;
    others needn't have it (:func:`keypoint_scheme`).
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def category_ids(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def keypoint_scheme(dataset: Dataset) -> KeypointScheme | None:
    """What the keypoints of `dataset` are called; None if its objects have none."""
    scheme: KeypointScheme | None = getattr(dataset, "keypoints", None)
    return scheme


def checked_index(index: int, count: int) -> int:
    """`index` from 0; negative ones count from the end.

    Raises:
        IndexError: it is out of range; this is also what ends ``for sample in dataset``.
    """
    if not -count <= index < count:
        raise IndexError(f"a dataset of {count} samples has no sample {index}")
    return index % count
