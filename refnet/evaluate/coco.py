"""Average precision and recall as COCO defines them, of boxes and of masks, computed by pycocotools.

A detection is right at an IoU threshold t if it matches an object of its class with at least that overlap; each
object matches once, the best-scored detection first. Precision against recall, made monotonous and averaged over
101 levels of recall, is AP at t; AP averages over t = 0.50, 0.55, ..., 0.95 and over the classes that occur.
AR is the highest recall that 1, 10 or 100 detections an image reach, averaged likewise.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np

from refnet.arrays import Array
from refnet.data.dataset import Dataset, Sample
from refnet.data.rle import encode
from refnet.errors import ArgumentError, DataError
from refnet.rcnn.boxes import to_xywh
from refnet.rcnn.structures import Detections, GroundTruth

IouType: TypeAlias = Literal["bbox", "segm"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm")
MASK_THRESHOLD = 0.5  # a pixel of a soft mask belongs to the object from here on
CURVES = ("0.50", "0.75", "mean")  # the IoU thresholds of the precision-recall curves; "mean" of all ten
RECALLS = np.linspace(0.0, 1.0, 101)

ImageDetections: TypeAlias = Sequence[Detections] | Mapping[int, Detections]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """Average precisions of one class, 0 to 1; None if it has no object."""

    name: str
    ap: float | None
    ap50: float | None
    ap75: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """COCO's twelve figures for boxes or for masks, 0 to 1; None where there is no object to find.

    Attributes:
        ap, ap50, ap75: average precision over IoU 0.50 to 0.95, at 0.50, at 0.75.
        ap_small, ap_medium, ap_large: of objects below 32², up to 96², above 96² pixels.
        ar1, ar10, ar100: average recall with that many detections an image.
        ar_small, ar_medium, ar_large: average recall by the objects' size, with 100 detections.
        classes: the precision of each class.
        precision: the precision-recall curves, (3, K, 101): for each of :data:`CURVES` and each class, the
            precision at each of :data:`RECALLS`; NaN for a class without an object.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    classes: tuple[ClassMetrics, ...]
    precision: Array

    def figures(self) -> dict[str, float | None]:
        """The twelve figures by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("classes", "precision")}

    def to_json(self) -> dict[str, Any]:
        """All of it in lists, dictionaries and numbers; curves are rounded to four digits."""
        curves = {
            name: [None if np.isnan(row[0]) else [round(float(p), 4) for p in row] for row in rows]
            for name, rows in zip(CURVES, self.precision, strict=True)
        }
        classes = [{"name": c.name, "ap": c.ap, "ap50": c.ap50, "ap75": c.ap75} for c in self.classes]
        return self.figures() | {"classes": classes, "precision": curves}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What COCO's evaluation says of the detections on a dataset.

    Attributes:
        box, mask: the figures by the overlap of boxes and of masks; None if not evaluated.
        images, objects, crowds, detections: how many there were; objects are without crowds.
    """

    box: Metrics | None
    mask: Metrics | None
    images: int
    objects: int
    crowds: int
    detections: int

    def to_json(self) -> dict[str, Any]:
        """All of it in lists, dictionaries and numbers, with the levels of recall that the curves stand at."""
        return {
            "box": None if self.box is None else self.box.to_json(),
            "mask": None if self.mask is None else self.mask.to_json(),
            "recall": [round(float(r), 2) for r in RECALLS],
            "images": self.images,
            "objects": self.objects,
            "crowds": self.crowds,
            "detections": self.detections,
        }

    def __str__(self) -> str:
        """A table of the figures in percent."""
        rows = {"box": self.box, "mask": self.mask}
        lines = [f"{self.images} images, {self.objects} objects, {self.detections} detections"]
        for name, metrics in rows.items():
            if metrics is None:
                continue
            figures = metrics.figures()
            if len(lines) == 1:
                lines.append(" " * 5 + "".join(f"{key:>10}" for key in figures))
            values = ("     -" if v is None else f"{100 * v:.1f}" for v in figures.values())
            lines.append(f"{name:5}" + "".join(f"{value:>10}" for value in values))
        return "\n".join(lines)


def evaluate(
    dataset: Dataset, detections: ImageDetections, *, iou_types: Sequence[IouType] | None = None
) -> Evaluation:
    """Evaluate the detections of every image of `dataset`.

    Args:
        detections: one record for each sample, in order; or by image id, where an image may be missing if nothing was
            found in it.
        iou_types: "bbox", "segm" or both; by default boxes, and masks if all objects and all detections have some.

    Raises:
        ArgumentError: `iou_types` names something else or nothing.
        DataError: the detections don't fit the dataset, a score or coordinate isn't finite, a class is unknown, a mask
            hasn't the image's size; or "segm" was asked for and masks are missing.
    """
    evaluator = CocoEvaluator(dataset.class_names, dataset.category_ids, iou_types=iou_types)
    for sample, found in _paired(dataset, detections):
        evaluator.add(sample.image_id, sample.truth, found)
    return evaluator.evaluate()


def coco_results(detections: ImageDetections, dataset: Dataset) -> list[dict[str, Any]]:
    """The detections in COCO's results format, as its server takes them: boxes [x, y, width, height], masks as RLE.

    Raises:
        DataError: as for :func:`evaluate`.
    """
    paired = _paired(dataset, detections)
    return [row for sample, found in paired for row in image_results(sample.image_id, found, dataset.category_ids)]


def image_results(image_id: int, detections: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The detections of one image in COCO's results format; soft masks are cut at 0.5.

    Raises:
        DataError: a score or coordinate isn't finite, or a class isn't 1 to the number of categories.
    """
    boxes, scores, classes = detections.boxes, detections.scores, detections.classes
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DataError(f"image {image_id}: expected finite boxes and scores, got {boxes.tolist()}, {scores.tolist()}")
    if len(classes) and not (classes.min() >= 1 and classes.max() <= len(category_ids)):
        raise DataError(
            f"image {image_id}: classes must be 1 to {len(category_ids)}, got {classes.min()} to {classes.max()}"
        )
    results = []
    for index, box in enumerate(to_xywh(boxes.astype(np.float64))):
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[int(classes[index]) - 1],
            "bbox": box.tolist(),
            "score": float(scores[index]),
        }
        if detections.masks is not None:
            result["segmentation"] = encode(detections.masks[index] >= MASK_THRESHOLD)
        results.append(result)
    return results


class CocoEvaluator:
    """Takes images one by one, so that their masks needn't be kept, and evaluates all of them at the end.

    Args:
        class_names, category_ids: those of the dataset.
        iou_types: as for :func:`evaluate`.

    Attributes:
        results: what was detected so far, in COCO's results format.
    """

    def __init__(
        self, class_names: Sequence[str], category_ids: Sequence[int], *, iou_types: Sequence[str] | None = None
    ) -> None:
        if iou_types is not None and (not iou_types or not set(iou_types) <= set(IOU_TYPES)):
            raise ArgumentError(f"evaluate: iou_types must be some of {', '.join(IOU_TYPES)}, got {iou_types!r}")
        self._class_names, self._category_ids, self._iou_types = tuple(class_names), tuple(category_ids), iou_types
        self._truth: list[dict[str, Any]] = []
        self._images: dict[int, None] = {}
        self.results: list[dict[str, Any]] = []

    def add(self, image_id: int, truth: GroundTruth, detections: Detections) -> None:
        """Take in what is, and what was found, in one image.

        Raises:
            DataError: as for :func:`evaluate`, or the image was already added.
        """
        if image_id in self._images:
            raise DataError(f"evaluate: image {image_id} was already added")
        sizes = [record.masks.shape[1:] for record in (truth, detections) if record.masks is not None and len(record)]
        if len(set(sizes)) > 1:
            raise DataError(
                f"image {image_id}: masks of detections must have the size of those of the objects, "
                f"expected {sizes[0]}, got {sizes[1]}"
            )
        if len(truth) and truth.classes.max() > len(self._category_ids):
            raise DataError(
                f"image {image_id}: classes must be 1 to {len(self._category_ids)}, got {truth.classes.max()}"
            )
        results = image_results(image_id, detections, self._category_ids)
        self._images[image_id] = None
        self.results += results
        for index, box in enumerate(to_xywh(truth.boxes.astype(np.float64))):
            annotation: dict[str, Any] = {
                "image_id": image_id,
                "category_id": self._category_ids[int(truth.classes[index]) - 1],
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
                "iscrowd": int(truth.crowd[index]),
            }
            if truth.masks is not None:
                annotation["segmentation"] = encode(truth.masks[index])
                annotation["area"] = float(np.count_nonzero(truth.masks[index]))
            self._truth.append(annotation)

    def evaluate(self) -> Evaluation:
        """The figures for all images added so far.

        Choice: the area that makes an object small, medium or large is its number of pixels, and of a box without a
        mask its width times height. COCO's own files state the polygons' area instead, which differs by a fraction.

        Raises:
            DataError: "segm" was asked for, and an object or a detection has no mask.
        """
        bare = sum("segmentation" not in row for row in (*self._truth, *self.results))
        iou_types = self._iou_types
        if iou_types is None:
            iou_types = ("bbox",) if bare else IOU_TYPES
        if "segm" in iou_types and bare:
            raise DataError(f"evaluate: 'segm' needs masks; {bare} objects or detections have none")
        crowds = sum(row["iscrowd"] for row in self._truth)
        return Evaluation(
            box=self._metrics("bbox") if "bbox" in iou_types else None,
            mask=self._metrics("segm") if "segm" in iou_types else None,
            images=len(self._images),
            objects=len(self._truth) - crowds,
            crowds=crowds,
            detections=len(self.results),
        )

    def _metrics(self, iou_type: IouType) -> Metrics:
        from pycocotools.cocoeval import COCOeval

        truth = _Annotations(self._truth, list(self._images), self._category_ids)
        found = _Annotations(
            [{**row, "area": _area(row, iou_type)} for row in self.results], list(self._images), self._category_ids
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            evaluation = COCOeval(truth, found, iou_type)
            if self._images and self._category_ids:
                evaluation.evaluate()
                evaluation.accumulate()
        return _summarize(evaluation.eval, self._class_names, self._category_ids)


def _paired(dataset: Dataset, detections: ImageDetections) -> Iterator[tuple[Sample, Detections]]:
    """Each sample with what was found in it."""
    if not isinstance(detections, Mapping):
        if len(detections) != len(dataset):
            raise DataError(f"evaluate: expected detections for {len(dataset)} images, got {len(detections)}")
        for index, found in enumerate(detections):
            yield dataset[index], found
        return
    unknown = set(detections)
    for index in range(len(dataset)):
        sample = dataset[index]
        unknown.discard(sample.image_id)
        yield sample, detections.get(sample.image_id, _NOTHING)
    if unknown:
        raise DataError(f"evaluate: there are detections for images that the dataset hasn't: {sorted(unknown)[:10]}")


_NOTHING = Detections(boxes=np.zeros((0, 4)), classes=np.zeros(0, np.int64), scores=np.zeros(0), masks=None)


def _area(result: dict[str, Any], iou_type: IouType) -> float:
    if iou_type == "bbox":
        return float(result["bbox"][2] * result["bbox"][3])
    from pycocotools import mask

    return float(mask.area(result["segmentation"]))


class _Annotations:
    """As much of ``pycocotools.coco.COCO`` as COCOeval asks for, of rows in memory."""

    def __init__(self, rows: list[dict[str, Any]], image_ids: list[int], category_ids: Sequence[int]) -> None:
        # COCOeval writes on the rows, and takes the id 0 for "no match"
        self._rows = [{**row, "id": number} for number, row in enumerate(rows, start=1)]
        self._image_ids, self._category_ids = image_ids, list(category_ids)

    def getImgIds(self) -> list[int]:
        return self._image_ids

    def getCatIds(self) -> list[int]:
        return self._category_ids

    def getAnnIds(self, **_: Any) -> list[int]:
        """The positions of all rows, whatever images and categories are asked for: it is always all of them."""
        return list(range(len(self._rows)))

    def loadAnns(self, ids: list[int]) -> list[dict[str, Any]]:
        return [self._rows[position] for position in ids]

    def annToRLE(self, row: dict[str, Any]) -> dict[str, Any]:
        rle: dict[str, Any] = row["segmentation"]
        return rle


def _summarize(accumulated: dict[str, Any], class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> Metrics:
    """COCO's figures from COCOeval's arrays, in which -1 stands for "no object".

    precision is (T, R, K, A, M) and recall (T, K, A, M): T IoU thresholds 0.50, 0.55, ..., 0.95, R levels of recall,
    K categories by their ids, A areas (all, small, medium, large), M limits of 1, 10, 100 detections an image.
    """
    place = np.argsort(np.argsort(category_ids))  # of each class among the categories
    precision = accumulated.get("precision", np.full((10, 101, len(place), 4, 3), -1.0))[:, :, place]
    recall = accumulated.get("recall", np.full((10, len(place), 4, 3), -1.0))[:, place]

    def mean(values: Array) -> float | None:
        present = values[values > -1]
        return float(present.mean()) if present.size else None

    def average_precision(values: Array) -> dict[str, float | None]:
        return {"ap": mean(values), "ap50": mean(values[0]), "ap75": mean(values[5])}

    overall = precision[:, :, :, 0, 2]  # T R K
    curves = np.stack([overall[0], overall[5], overall.mean(axis=0)]).transpose(0, 2, 1)  # 3 K R
    return Metrics(
        **average_precision(overall),
        ap_small=mean(precision[:, :, :, 1, 2]),
        ap_medium=mean(precision[:, :, :, 2, 2]),
        ap_large=mean(precision[:, :, :, 3, 2]),
        ar1=mean(recall[:, :, 0, 0]),
        ar10=mean(recall[:, :, 0, 1]),
        ar100=mean(recall[:, :, 0, 2]),
        ar_small=mean(recall[:, :, 1, 2]),
        ar_medium=mean(recall[:, :, 2, 2]),
        ar_large=mean(recall[:, :, 3, 2]),
        classes=tuple(
            ClassMetrics(name=name, **average_precision(overall[:, :, k])) for k, name in enumerate(class_names)
        ),
        precision=np.where(curves < 0, np.nan, curves),
    )
