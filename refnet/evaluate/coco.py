"""Average precision and recall as COCO defines them, of boxes, masks and keypoints, computed by pycocotools.

A detection is right at an IoU threshold t if it matches an object of its class with at least that overlap; each
object matches once, the best-scored detection first. Precision against recall, made monotonous and averaged over
101 levels of recall, is AP at t; AP averages over t = 0.50, 0.55, ..., 0.95 and over the classes that occur.
AR is the highest recall that 1, 10 or 100 detections an image reach, averaged likewise.

The overlap of keypoints is their object keypoint similarity,

.. math:: \\mathrm{OKS} = \\frac{1}{|V|} \\sum_{k \\in V} \\exp\\!\\left(-\\frac{d_k^2}{2\\, A\\, (2 \\sigma_k)^2}\\right)

over the labelled points V, with d_k the distance between both points k, A the object's area and sigma_k how far people
place point k apart, in units of the root of the area. There, 20 detections an image count, and no small objects.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np

from refnet.arrays import Array
from refnet.data.coco import KEYPOINT_OFFSET
from refnet.data.dataset import Dataset, Sample
from refnet.data.rle import encode, encode_each
from refnet.errors import ArgumentError, DataError
from refnet.rcnn.boxes import to_xywh
from refnet.rcnn.structures import Detections, GroundTruth

IouType: TypeAlias = Literal["bbox", "segm", "keypoints"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm", "keypoints")
NEEDS = {"segm": "segmentation", "keypoints": "keypoints"}  # what a row must have for it
OKS_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
"""Of the 17 points of COCO's persons: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles."""
OTHER_SIGMA = 0.05  # of points that nobody measured
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
class _Figures:
    """What the figures of every kind of overlap have in common."""

    classes: tuple[ClassMetrics, ...]
    precision: Array

    def figures(self) -> dict[str, float | None]:
        """The figures by name."""
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
class Metrics(_Figures):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointMetrics(_Figures):
    """COCO's ten figures for keypoints, 0 to 1; None where there is no object to find.

    Attributes:
        ap, ap50, ap75: average precision over OKS 0.50 to 0.95, at 0.50, at 0.75.
        ap_medium, ap_large: of objects up to and above 96² pixels; those below 32² count in neither.
        ar, ar50, ar75, ar_medium, ar_large: average recall likewise, with 20 detections an image.
        classes, precision: as in :class:`Metrics`.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float | None
    ar50: float | None
    ar75: float | None
    ar_medium: float | None
    ar_large: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What COCO's evaluation says of the detections on a dataset.

    Attributes:
        box, mask, keypoints: the figures by the overlap of boxes, of masks and of keypoints; None if not evaluated.
        images, objects, crowds, detections: how many there were; objects are without crowds.
    """

    box: Metrics | None
    mask: Metrics | None
    keypoints: KeypointMetrics | None = None
    images: int
    objects: int
    crowds: int
    detections: int

    def to_json(self) -> dict[str, Any]:
        """All of it in lists, dictionaries and numbers, with the levels of recall that the curves stand at."""
        return {
            "box": None if self.box is None else self.box.to_json(),
            "mask": None if self.mask is None else self.mask.to_json(),
            "keypoints": None if self.keypoints is None else self.keypoints.to_json(),
            "recall": [round(float(r), 2) for r in RECALLS],
            "images": self.images,
            "objects": self.objects,
            "crowds": self.crowds,
            "detections": self.detections,
        }

    def __str__(self) -> str:
        """A table of the figures in percent."""
        rows: dict[str, _Figures | None] = {"box": self.box, "mask": self.mask, "points": self.keypoints}
        lines = [f"{self.images} images, {self.objects} objects, {self.detections} detections"]
        shown: list[str] = []
        for name, metrics in rows.items():
            if metrics is None:
                continue
            figures = metrics.figures()
            if list(figures) != shown:
                shown = list(figures)
                lines.append(" " * 6 + "".join(f"{key:>10}" for key in shown))
            values = ("     -" if v is None else f"{100 * v:.1f}" for v in figures.values())
            lines.append(f"{name:6}" + "".join(f"{value:>10}" for value in values))
        return "\n".join(lines)


def evaluate(
    dataset: Dataset,
    detections: ImageDetections,
    *,
    iou_types: Sequence[IouType] | None = None,
    oks_sigmas: Sequence[float] | None = None,
) -> Evaluation:
    """Evaluate the detections of every image of `dataset`.

    Args:
        detections: one record for each sample, in order; or by image id, where an image may be missing if nothing was
            found in it.
        iou_types: some of "bbox", "segm" and "keypoints"; by default boxes, and of masks and keypoints those that all
            objects and all detections have.
        oks_sigmas: for each keypoint, as in the equation above; by default :data:`OKS_SIGMAS` for 17 points, and
            :data:`OTHER_SIGMA` for each of any other number.

    Raises:
        ArgumentError: `iou_types` names something else or nothing, or a sigma isn't positive.
        DataError: the detections don't fit the dataset, a score or coordinate isn't finite, a class is unknown, a mask
            hasn't the image's size; or masks or keypoints were asked for and are missing, or there aren't as many
            keypoints as sigmas.
    """
    evaluator = CocoEvaluator(dataset.class_names, dataset.category_ids, iou_types=iou_types, oks_sigmas=oks_sigmas)
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


def image_results(
    image_id: int,
    detections: Detections,
    category_ids: Sequence[int],
    *,
    keypoint_offset: float = KEYPOINT_OFFSET,
) -> list[dict[str, Any]]:
    """The detections of one image in COCO's results format; soft masks are cut at 0.5.

    `keypoint_offset` is what :class:`refnet.data.CocoDataset` added to the keypoints that the network learned from;
    it is subtracted here.

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
    masks = None if detections.masks is None else encode_each(detections.masks, threshold=MASK_THRESHOLD)
    for index, box in enumerate(to_xywh(boxes.astype(np.float64))):
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[int(classes[index]) - 1],
            "bbox": box.tolist(),
            "score": float(scores[index]),
        }
        if masks is not None:
            result["segmentation"] = masks[index]
        if detections.keypoints is not None:
            points = detections.keypoints[index].astype(np.float64)
            if not np.isfinite(points).all():
                raise DataError(f"image {image_id}: expected finite keypoints, got {points.tolist()}")
            result["keypoints"] = [
                v for x, y, seen in points.tolist() for v in (x - keypoint_offset, y - keypoint_offset, int(seen))
            ]
        results.append(result)
    return results


class CocoEvaluator:
    """Takes images one by one, so that their masks needn't be kept, and evaluates all of them at the end.

    Args:
        class_names, category_ids: those of the dataset.
        iou_types, oks_sigmas: as for :func:`evaluate`.

    Attributes:
        results: what was detected so far, in COCO's results format.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        *,
        iou_types: Sequence[str] | None = None,
        oks_sigmas: Sequence[float] | None = None,
        keypoint_offset: float = KEYPOINT_OFFSET,
    ) -> None:
        if iou_types is not None and (not iou_types or not set(iou_types) <= set(IOU_TYPES)):
            raise ArgumentError(f"evaluate: iou_types must be some of {', '.join(IOU_TYPES)}, got {iou_types!r}")
        if oks_sigmas is not None and not all(sigma > 0 for sigma in oks_sigmas):
            raise ArgumentError(f"evaluate: oks_sigmas must be positive, got {oks_sigmas!r}")
        self._oks_sigmas, self._keypoint_offset = oks_sigmas, keypoint_offset
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
        results = image_results(image_id, detections, self._category_ids, keypoint_offset=self._keypoint_offset)
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
            if truth.keypoints is not None:
                points = truth.keypoints[index].astype(np.float64)
                labelled = points[:, 2] > 0
                points[:, :2] -= self._keypoint_offset
                annotation["keypoints"] = np.where(labelled[:, None], points, 0.0).reshape(-1).tolist()
                annotation["num_keypoints"] = int(labelled.sum())
            self._truth.append(annotation)

    def evaluate(self) -> Evaluation:
        """The figures for all images added so far.

        Choice: the area that makes an object small, medium or large is its number of pixels, and of a box without a
        mask its width times height. COCO's own files state the polygons' area instead, which differs by a fraction. It
        is the area of OKS, too. For keypoints, that of a detection is the rectangle's around them, as for COCO's server,
        whose results of keypoints have no boxes.

        Raises:
            DataError: masks or keypoints were asked for, and an object or a detection has none; or the objects and
                detections have different numbers of keypoints, or not as many as there are sigmas.
        """
        bare = {kind: sum(key not in row for row in (*self._truth, *self.results)) for kind, key in NEEDS.items()}
        rows = len(self._truth) + len(self.results)
        iou_types = self._iou_types
        if iou_types is None:
            # masks of nothing are evaluated, as ever; keypoints, which few networks have, only if there are some
            absent = {"segm": bare["segm"] > 0, "keypoints": bare["keypoints"] > 0 or not rows}
            iou_types = [kind for kind in IOU_TYPES if not absent.get(kind, False)]
        for kind, count in bare.items():
            if kind in iou_types and count:
                what = {"segm": "masks", "keypoints": "keypoints"}[kind]
                raise DataError(f"evaluate: {kind!r} needs {what}; {count} objects or detections have none")
        crowds = sum(row["iscrowd"] for row in self._truth)
        return Evaluation(
            box=self._metrics("bbox") if "bbox" in iou_types else None,
            mask=self._metrics("segm") if "segm" in iou_types else None,
            keypoints=self._keypoint_metrics() if "keypoints" in iou_types else None,
            images=len(self._images),
            objects=len(self._truth) - crowds,
            crowds=crowds,
            detections=len(self.results),
        )

    def _metrics(self, iou_type: IouType) -> Metrics:
        return _summarize(self._accumulated(iou_type), self._class_names, self._category_ids)

    def _keypoint_metrics(self) -> KeypointMetrics:
        counts = {len(row["keypoints"]) // 3 for row in (*self._truth, *self.results)}
        sigmas = self._oks_sigmas
        if len(counts) > 1 or (sigmas is not None and counts - {len(sigmas)}):
            expected = "one number of keypoints" if sigmas is None else f"{len(sigmas)} keypoints"
            raise DataError(f"evaluate: expected {expected} of all objects and detections, got {sorted(counts)}")
        count = counts.pop() if counts else len(OKS_SIGMAS)
        if sigmas is None:
            sigmas = OKS_SIGMAS if count == len(OKS_SIGMAS) else (OTHER_SIGMA,) * count
        accumulated = self._accumulated("keypoints", np.asarray(sigmas, np.float64))
        return _summarize_keypoints(accumulated, self._class_names, self._category_ids)

    def _accumulated(self, iou_type: IouType, sigmas: Array | None = None) -> dict[str, Any]:
        """COCOeval's arrays."""
        from pycocotools.cocoeval import COCOeval

        truth = _Annotations(self._truth, list(self._images), self._category_ids)
        areas = _areas(self.results, iou_type)
        rows = [{**row, "area": area} for row, area in zip(self.results, areas, strict=True)]
        found = _Annotations(rows, list(self._images), self._category_ids)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            evaluation = COCOeval(truth, found, iou_type)
            if sigmas is not None:
                evaluation.params.kpt_oks_sigmas = sigmas
            if self._images and self._category_ids:
                evaluation.evaluate()
                evaluation.accumulate()
        accumulated: dict[str, Any] = evaluation.eval
        return accumulated


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


def _areas(results: Sequence[dict[str, Any]], iou_type: IouType) -> list[float]:
    if iou_type == "bbox":
        return [result["bbox"][2] * result["bbox"][3] for result in results]
    if iou_type == "keypoints":
        extents = [np.ptp(np.reshape(result["keypoints"], (-1, 3))[:, :2], axis=0) for result in results]
        return [float(width * height) for width, height in extents]
    from pycocotools import mask

    return [float(mask.area(result["segmentation"])) for result in results]  # of a list it takes 255 at most


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
    precision, recall = _by_class(accumulated, category_ids, areas=4, limits=3)
    overall = precision[:, :, :, 0, 2]  # T R K
    return Metrics(
        **_at_thresholds("ap", overall),
        ap_small=_mean(precision[:, :, :, 1, 2]),
        ap_medium=_mean(precision[:, :, :, 2, 2]),
        ap_large=_mean(precision[:, :, :, 3, 2]),
        ar1=_mean(recall[:, :, 0, 0]),
        ar10=_mean(recall[:, :, 0, 1]),
        ar100=_mean(recall[:, :, 0, 2]),
        ar_small=_mean(recall[:, :, 1, 2]),
        ar_medium=_mean(recall[:, :, 2, 2]),
        ar_large=_mean(recall[:, :, 3, 2]),
        classes=_of_classes(overall, class_names),
        precision=_curves(overall),
    )


def _summarize_keypoints(
    accumulated: dict[str, Any], class_names: tuple[str, ...], category_ids: tuple[int, ...]
) -> KeypointMetrics:
    """The same for keypoints, with the areas all, medium and large, and 20 detections an image."""
    precision, recall = _by_class(accumulated, category_ids, areas=3, limits=1)
    overall = precision[:, :, :, 0, 0]  # T R K
    return KeypointMetrics(
        **_at_thresholds("ap", overall),
        ap_medium=_mean(precision[:, :, :, 1, 0]),
        ap_large=_mean(precision[:, :, :, 2, 0]),
        **_at_thresholds("ar", recall[:, :, 0, 0]),
        ar_medium=_mean(recall[:, :, 1, 0]),
        ar_large=_mean(recall[:, :, 2, 0]),
        classes=_of_classes(overall, class_names),
        precision=_curves(overall),
    )


def _by_class(
    accumulated: dict[str, Any], category_ids: tuple[int, ...], *, areas: int, limits: int
) -> tuple[Array, Array]:
    """COCOeval's precision and recall with the classes in their own order, -1 throughout where nothing was evaluated."""
    place = np.argsort(np.argsort(category_ids))  # of each class among the categories
    precision = accumulated.get("precision", np.full((10, 101, len(place), areas, limits), -1.0))[:, :, place]
    recall = accumulated.get("recall", np.full((10, len(place), areas, limits), -1.0))[:, place]
    return precision, recall


def _mean(values: Array) -> float | None:
    present = values[values > -1]
    return float(present.mean()) if present.size else None


def _at_thresholds(name: str, values: Array) -> dict[str, float | None]:
    """The mean over all thresholds, which come first, at the first, 0.50, and at the sixth, 0.75."""
    return {name: _mean(values), f"{name}50": _mean(values[0]), f"{name}75": _mean(values[5])}


def _of_classes(overall: Array, class_names: tuple[str, ...]) -> tuple[ClassMetrics, ...]:
    return tuple(
        ClassMetrics(name=name, **_at_thresholds("ap", overall[:, :, k])) for k, name in enumerate(class_names)
    )


def _curves(overall: Array) -> Array:
    curves = np.stack([overall[0], overall[5], overall.mean(axis=0)]).transpose(0, 2, 1)  # 3 K R
    return np.where(curves < 0, np.nan, curves)
