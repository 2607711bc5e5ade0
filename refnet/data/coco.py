"""Datasets in COCO's instances format: a folder of images and one JSON file, as many tools write them."""

import json
import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.data import rle
from refnet.data.dataset import KeypointScheme, Sample, checked_index
from refnet.data.image_file import read_image
from refnet.errors import ConfigError, DataError
from refnet.rcnn.boxes import from_xywh
from refnet.rcnn.structures import GroundTruth

log = logging.getLogger(__name__)

KEYPOINT_OFFSET = (
    0.5  # from COCO's keypoints, which count pixels, to continuous pixels: the middle of pixel i is i + 1/2
)


@dataclass(frozen=True, slots=True)
class _Runs:
    counts: Array  # run lengths, column by column


@dataclass(frozen=True, slots=True)
class _Polygons:
    outlines: list[Array]  # (V, 2) each


@dataclass(slots=True)
class _Image:
    image_id: int
    file_name: str
    height: int
    width: int
    boxes: list[Array]
    classes: list[int]
    crowd: list[bool]
    segmentations: list[_Runs | _Polygons | None]
    keypoints: list[Array]  # (K, 3) each, as in the file

    def labelled_keypoints(self) -> int:
        """How many there are, without those of crowds."""
        pairs = zip(self.keypoints, self.crowd, strict=True)
        return sum(int(np.count_nonzero(points[:, 2])) for points, crowd in pairs if not crowd)


class CocoDataset:
    """The images of a COCO file in the order of their ids, those without objects included.

    Args:
        images_dir: the folder that the file names are relative to.
        annotations_path: the JSON file, with the keys "images", "annotations" and "categories".
        channels: 3 for RGB, 1 for gray, None for as many as each file holds. Transparency is dropped by the
            first two; of 16 bits the upper 8 are kept.
        keypoint_offset: what is added to the coordinates of keypoints. 0.5: a whole number is a pixel, whose middle lies
            half a pixel further, as boxes are counted here (Detectron2). 0: as they are (torchvision).
        min_keypoints: leave out images whose objects, without crowds, have fewer labelled keypoints in all. torchvision's
            training asks for 10, Detectron2's for 1.

    Attributes:
        class_names, category_ids: class k is the category with the k-th lowest id, at position k - 1: COCO's 80
            categories have gaps among their ids up to 90.
        has_masks: whether the samples have masks: only if every annotation has a "segmentation" that isn't empty.
        keypoints: what the keypoints are called; None if there are none: no category names some, or several do and
            name different ones. Objects without keypoints then have unlabelled ones.
        dropped: the ids of annotations that were left out, since their boxes have no area inside of the image.

    Choice: an object's box is the annotation's "bbox", clipped to the image, not the bounds of its mask, since
    COCO's evaluation compares with the former.

    Choice: a photo's EXIF orientation is ignored, as the COCO tools ignore it, if the pixels as stored have the
    width and height that the JSON file states; it is applied if they have them then.

    Raises:
        DataError: a file or folder is missing, the JSON is malformed or lacks a key, an id is unknown or occurs
            twice, a file name leads out of the folder, or a box or segmentation is malformed. Reading a sample
            raises it if the image can't be decoded or has another size than stated.
        ConfigError: `channels` is none of its values.
    """

    def __init__(
        self,
        images_dir: str | PathLike[str],
        annotations_path: str | PathLike[str],
        *,
        channels: int | None = 3,
        keypoint_offset: float = KEYPOINT_OFFSET,
        min_keypoints: int = 0,
    ) -> None:
        if channels not in (1, 3, None):
            raise ConfigError(f"CocoDataset: channels must be 3, 1 or None, got {channels!r}")
        self._folder, self._channels = Path(images_dir), channels
        if not self._folder.is_dir():
            raise DataError(f"{self._folder}: expected a folder of images, found none")
        path = Path(annotations_path)
        entries = _read_json(path)

        categories = _by_id(entries["categories"], path, "categories", {"name": str})
        order = sorted(categories)
        self.category_ids: tuple[int, ...] = tuple(order)
        self.class_names: tuple[str, ...] = tuple(categories[k]["name"] for k in order)
        self.keypoints: KeypointScheme | None = _scheme(categories, path)
        self._keypoint_offset = keypoint_offset
        class_of = {category: k for k, category in enumerate(order, start=1)}

        images = _by_id(entries["images"], path, "images", {"file_name": str, "height": int, "width": int})
        self._images = {image_id: self._image(images[image_id], path) for image_id in sorted(images)}
        annotations = _by_id(
            entries["annotations"], path, "annotations", {"image_id": int, "category_id": int, "bbox": list}
        )
        self.dropped: tuple[int, ...] = tuple(
            annotation_id
            for annotation_id, annotation in annotations.items()
            if not self._add(annotation, class_of, f"{path}: annotation {annotation_id}")
        )
        self._order = list(self._images.values())
        if min_keypoints:
            if self.keypoints is None:
                raise DataError(f"{path}: expected keypoints, of which an image needs {min_keypoints}, got none")
            self._order = [image for image in self._order if image.labelled_keypoints() >= min_keypoints]
        if self.dropped:
            log.warning(
                "%s: %d annotations left out: their boxes have no area in the image; ids %s%s",
                path,
                len(self.dropped),
                ", ".join(map(str, self.dropped[:10])),
                ", ..." if len(self.dropped) > 10 else "",
            )

        bare = sum(s is None for image in self._order for s in image.segmentations)
        total = sum(len(image.segmentations) for image in self._order)
        self.has_masks: bool = bare == 0
        if 0 < bare < total:
            log.warning("%s: no masks are read: %d of %d annotations have no segmentation", path, bare, total)

    def __len__(self) -> int:
        return len(self._order)

    def position(self, file_name: str) -> int:
        """The position of the image with this file name.

        Raises:
            DataError: there is none.
        """
        for index, entry in enumerate(self._order):
            if entry.file_name == file_name:
                return index
        raise DataError(f"{self._folder}: expected an image called {file_name!r} in the annotations, found none")

    def __getitem__(self, index: int) -> Sample:
        entry = self._order[checked_index(index, len(self))]
        image = read_image(self._folder / entry.file_name, channels=self._channels, size=(entry.height, entry.width))
        count = len(entry.boxes)
        masks = None
        if self.has_masks:
            masks = np.zeros((count, entry.height, entry.width), bool)
            for row, segmentation in zip(masks, entry.segmentations, strict=True):
                if isinstance(segmentation, _Runs):
                    row[:] = rle.decode_counts(segmentation.counts, entry.height, entry.width)
                elif segmentation is not None:
                    row[:] = rle.rasterize(segmentation.outlines, entry.height, entry.width)
        truth = GroundTruth(
            boxes=np.array(entry.boxes, np.float32).reshape(count, 4),
            classes=np.array(entry.classes, np.int64),
            masks=masks,
            crowd=np.array(entry.crowd, bool),
            keypoints=None if self.keypoints is None else self._points(entry),
        )
        return Sample(image=image, truth=truth, image_id=entry.image_id, file_name=entry.file_name)

    def _image(self, entry: dict[str, Any], path: Path) -> _Image:
        name, height, width = entry["file_name"], entry["height"], entry["width"]
        where = f"{path}: image {entry['id']}"
        if height < 1 or width < 1:
            raise DataError(f"{where}: expected a height and width of at least 1, got {height} and {width}")
        if _leads_out(name):
            raise DataError(f"{where}: expected a file name inside of the folder of images, got {name!r}")
        if not (self._folder / name).is_file():
            raise DataError(f"{where}: expected the file {self._folder / name}, found none")
        return _Image(entry["id"], name, height, width, [], [], [], [], [])

    def _points(self, entry: _Image) -> Array:
        assert self.keypoints is not None
        points = np.array(entry.keypoints, np.float32).reshape(len(entry.boxes), len(self.keypoints), 3)
        points[..., :2] += np.where(points[..., 2:] > 0, np.float32(self._keypoint_offset), np.float32(0))
        return points

    def _add(self, annotation: dict[str, Any], class_of: dict[int, int], where: str) -> bool:
        """Add an annotation to its image, unless its box has no area there."""
        image = self._images.get(annotation["image_id"])
        if image is None:
            raise DataError(f"{where}: there is no image with the image_id {annotation['image_id']}")
        if annotation["category_id"] not in class_of:
            raise DataError(f"{where}: there is no category with the category_id {annotation['category_id']}")
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise DataError(f"{where}: iscrowd must be 0 or 1, got {crowd!r}")
        box = rle.numbers(annotation["bbox"], f"{where}: bbox")
        if len(box) != 4:
            raise DataError(f"{where}: bbox must be [x, y, width, height], got {annotation['bbox']}")
        try:
            segmentation = _segmentation(annotation.get("segmentation"), image)
        except DataError as error:
            raise DataError(f"{where}: segmentation: {error}") from None
        points = None if self.keypoints is None else _points(annotation, len(self.keypoints), where)

        limits = np.array([image.width, image.height] * 2, np.float64)
        with np.errstate(over="ignore"):  # an infinite corner is clipped like any other
            corners = np.clip(from_xywh(box), 0, limits).astype(np.float32)
        if not (corners[2:] > corners[:2]).all():
            return False
        image.boxes.append(corners)
        image.classes.append(class_of[annotation["category_id"]])
        image.crowd.append(bool(crowd))
        image.segmentations.append(segmentation)
        if points is not None:
            image.keypoints.append(points)
        return True


def _segmentation(value: Any, image: _Image) -> _Runs | _Polygons | None:
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        return _Runs(rle.run_lengths(value, image.height, image.width))
    return _Polygons(rle.polygons(value))


def _scheme(categories: dict[int, dict[str, Any]], path: Path) -> KeypointScheme | None:
    """What the categories call their keypoints; None if they name none, or not all the same."""
    found: dict[tuple[str, ...], KeypointScheme] = {}
    for number, category in categories.items():
        names, skeleton = category.get("keypoints"), category.get("skeleton", [])
        where = f"{path}: category {number}"
        if names is None or names == []:
            continue
        if not isinstance(names, list) or not all(type(name) is str for name in names):
            raise DataError(f"{where}: keypoints must be a list of names, got {names!r:.60}")
        if not isinstance(skeleton, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(type(point) is int for point in pair) for pair in skeleton
        ):
            raise DataError(f"{where}: skeleton must be a list of pairs of points, got {skeleton!r:.60}")
        try:
            scheme = KeypointScheme(names=tuple(names), skeleton=tuple((a - 1, b - 1) for a, b in skeleton))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        found.setdefault(scheme.names, scheme)
    if len(found) > 1:
        log.warning("%s: no keypoints are read: the categories have %d different sets of them", path, len(found))
    return next(iter(found.values())) if len(found) == 1 else None


def _points(annotation: dict[str, Any], count: int, where: str) -> Array:
    """The keypoints of an annotation, (count, 3), all 0 if it has none."""
    value = annotation.get("keypoints")
    if value is None or value == []:
        return np.zeros((count, 3))
    points = rle.numbers(value, f"{where}: keypoints")
    if len(points) != 3 * count:
        raise DataError(f"{where}: keypoints must be x, y and visibility of {count} points, got {len(points)} numbers")
    points = points.reshape(count, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise DataError(f"{where}: the visibility of a keypoint must be 0, 1 or 2, got {points[:, 2].tolist()}")
    labelled = int(np.count_nonzero(points[:, 2]))
    stated = annotation.get("num_keypoints", labelled)
    if stated != labelled:
        raise DataError(f"{where}: num_keypoints must be the number of labelled keypoints, {labelled}, got {stated!r}")
    points[points[:, 2] == 0] = 0
    return points


def _leads_out(name: str) -> bool:
    """Whether a file name isn't a plain relative path that stays below its folder, on any system."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return (
        not posix.parts
        or posix.is_absolute()
        or bool(windows.anchor)
        or ".." in posix.parts
        or ".." in windows.parts
        or "\0" in name
    )


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: expected a file of annotations, found none") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: malformed JSON in line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: expected a list under the key {key!r}, got {type(content.get(key)).__name__}")
    return content


def _by_id(entries: list[Any], path: Path, what: str, types: dict[str, type]) -> dict[int, dict[str, Any]]:
    """The entries of a list by their ids, each with all keys of `types`."""
    found: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: {what}[{index}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected an object, got {type(entry).__name__}")
        for key, kind in {"id": int, **types}.items():
            if key not in entry:
                raise DataError(f"{where}: the key {key!r} is missing")
            if type(entry[key]) is not kind:
                raise DataError(f"{where}: {key} must be of type {kind.__name__}, got {entry[key]!r:.60}")
        if not 0 <= entry["id"] < 1 << 63:
            raise DataError(f"{where}: id must be 0 to 2**63 - 1, got {entry['id']}")
        if entry["id"] in found:
            raise DataError(f"{where}: the id {entry['id']} occurs twice")
        found[entry["id"]] = entry
    return found
