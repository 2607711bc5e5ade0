"""COCO's evaluation: refnet's wrapper against pycocotools alone, on the same detections."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from refnet.bench import bars
from refnet.bench.contest import Contest, Part, Subject, WrongResult
from refnet.bench.contestants import CPU, PYCOCOTOOLS, Field
from refnet.data import Sample, Shapes, ShapesConfig
from refnet.evaluate import Evaluation, evaluate
from refnet.rcnn.structures import Detections

KINDS = ("bbox", "segm")


def subject(*, quick: bool) -> Subject:
    """Boxes and masks of toy shapes, with ten detections for each object."""
    images = 4 if quick else 200
    prepare = partial(_contest, images=images)
    return Subject.of(Part(name=f"evaluation of {images} images", prepare=prepare), {PYCOCOTOOLS: bars.EVALUATION})


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A dataset in memory, so that nobody's time is that of drawing its images."""

    samples: Sequence[Sample]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _contest(field: Field, *, images: int) -> Contest:
    shapes = Shapes(ShapesConfig(), count=images, seed=0, split="val")
    dataset = Kept(
        samples=[shapes[index] for index in range(images)],
        class_names=shapes.class_names,
        category_ids=shapes.category_ids,
    )
    rng = np.random.default_rng(0)
    found = [_near(sample.truth, rng) for sample in dataset.samples]
    runs = {CPU: lambda: evaluate(dataset, found), PYCOCOTOOLS: lambda: by_pycocotools(dataset, found)}
    return Contest(runs=runs, check=_check)


def _near(truth: Any, rng: np.random.Generator) -> Detections:
    """Ten detections around each object, some of them of another class."""
    index = np.repeat(np.arange(len(truth)), 10)
    shifts = rng.integers(-6, 7, (len(index), 2))
    masks = np.stack([np.roll(truth.masks[i], tuple(shift), (0, 1)) for i, shift in zip(index, shifts, strict=True)])
    classes = truth.classes[index].copy()
    other = rng.random(len(index)) < 0.2
    classes[other] = rng.integers(1, 4, other.sum())
    return Detections(
        boxes=truth.boxes[index] + shifts[:, [1, 0, 1, 0]],
        classes=classes,
        scores=rng.random(len(index)).round(3),
        masks=masks,
    )


def by_pycocotools(dataset: Kept, found: Sequence[Detections]) -> dict[str, list[float]]:
    """COCO's twelve figures of boxes and of masks by pycocotools alone, as its own demonstration computes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for sample, detections in zip(dataset.samples, found, strict=True):
        for row in _rows(sample.image_id, sample.truth, dataset):
            row |= {"id": len(annotations) + 1, "iscrowd": 0, "area": float(row.pop("pixels"))}
            annotations.append(row)
        for row, score in zip(_rows(sample.image_id, detections, dataset), detections.scores.tolist(), strict=True):
            results.append(row | {"score": score})
    figures = {}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        objects = COCO()
        objects.dataset = {
            "images": [
                {"id": s.image_id, "height": s.image.shape[0], "width": s.image.shape[1]} for s in dataset.samples
            ],
            "annotations": annotations,
            "categories": [{"id": number} for number in dataset.category_ids],
        }
        objects.createIndex()
        for kind in KINDS:
            # a row with a box has the box's area, though its mask is what is evaluated
            without = {"segmentation"} if kind == "bbox" else {"bbox"}
            rows = [{key: value for key, value in row.items() if key not in without} for row in results]
            evaluation = COCOeval(objects, objects.loadRes(rows), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            figures[kind] = evaluation.stats.tolist()
    return figures


def _rows(image_id: int, record: Any, dataset: Kept) -> list[dict[str, Any]]:
    from pycocotools import mask

    stack = np.asfortranarray(np.moveaxis(np.asarray(record.masks), 0, -1), np.uint8)
    return [
        {
            "image_id": image_id,
            "category_id": dataset.category_ids[class_ - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": run_lengths,
            "pixels": pixels,
        }
        for (x1, y1, x2, y2), class_, run_lengths, pixels in zip(
            record.boxes.tolist(), record.classes.tolist(), mask.encode(stack), stack.sum(axis=(0, 1)), strict=True
        )
    ]


def _check(results: Mapping[str, Any]) -> str:
    ours: Evaluation = results[CPU]
    worst = 0.0
    for kind, metrics in zip(KINDS, (ours.box, ours.mask), strict=True):
        assert metrics is not None
        figures = [-1.0 if value is None else value for value in metrics.figures().values()]
        apart = float(np.abs(np.subtract(figures, results[PYCOCOTOOLS][kind])).max())
        if not apart <= 1e-12:
            raise WrongResult(f"{kind}: refnet finds {figures}, pycocotools {results[PYCOCOTOOLS][kind]}")
        worst = max(worst, apart)
    return f"the same {2 * 12} figures"
