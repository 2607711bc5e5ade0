"""Write any dataset in COCO's instances format: PNG files and one JSON file. Equal datasets give equal bytes."""

import json
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from refnet.arrays import Array
from refnet.data import rle
from refnet.data.coco import KEYPOINT_OFFSET
from refnet.data.dataset import Dataset, Sample, keypoint_scheme
from refnet.data.shapes import Shapes, ShapesConfig
from refnet.errors import DataError

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def write_shapes(
    config: ShapesConfig | None, out: str | PathLike[str], *, train: int, val: int, seed: int = 0
) -> dict[str, Path]:
    """Write `train` and `val` images of shapes: ``out/train/*.png`` with ``out/train.json``, the same for "val".

    Returns:
        The JSON file of each split.
    """
    files = {}
    for split, count in {"train": train, "val": val}.items():
        files[split] = Path(out) / f"{split}.json"
        write_coco(Shapes(config, count=count, seed=seed, split=split), Path(out) / split, files[split])
    return files


def write_coco(dataset: Dataset, images_dir: str | PathLike[str], annotations_path: str | PathLike[str]) -> None:
    """Write the images of `dataset` as PNG files and its objects as one JSON file that CocoDataset reads.

    A mask becomes polygons if they give back exactly its pixels, else (it has a hole, say) a compressed
    run-length encoding. Crowds are always run-length encoded, as in COCO's files. "area" counts the mask's pixels.
    Keypoints count pixels as COCO's do, so they are half a pixel less than here.

    Raises:
        DataError: two images have one name, or an image has more channels than a PNG file can.
    """
    folder, path = Path(images_dir), Path(annotations_path)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: set[str] = set()
    for index in range(len(dataset)):
        sample = dataset[index]
        name = str(PurePosixPath(sample.file_name).with_suffix(".png"))
        if name in names:
            raise DataError(f"write_coco: two images would be named {name}")
        names.add(name)
        _write_png(sample.image, folder / name)
        height, width = sample.image.shape[:2]
        images.append({"id": sample.image_id, "file_name": name, "width": width, "height": height})
        for annotation in _annotations(sample, dataset.category_ids):
            annotations.append({"id": len(annotations) + 1, **annotation})  # COCO's evaluation takes id 0 for "none"
    scheme = keypoint_scheme(dataset)
    points: dict[str, Any] = {}
    if scheme is not None:
        points = {"keypoints": scheme.names, "skeleton": [(a + 1, b + 1) for a, b in scheme.skeleton]}
    categories = [
        {"id": k, "name": name, **points} for k, name in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _annotations(sample: Sample, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    truth, annotations = sample.truth, []
    for index in range(len(truth)):
        x1, y1, x2, y2 = (float(v) for v in truth.boxes[index])
        annotation: dict[str, Any] = {
            "image_id": sample.image_id,
            "category_id": category_ids[int(truth.classes[index]) - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(truth.crowd[index]),
        }
        if truth.masks is not None:
            mask = truth.masks[index]
            annotation["area"] = int(np.count_nonzero(mask))
            annotation["segmentation"] = _segmentation(mask, as_polygons=not truth.crowd[index])
        if truth.keypoints is not None:
            points = truth.keypoints[index].astype(np.float64)
            points[points[:, 2] > 0, :2] -= KEYPOINT_OFFSET
            annotation["keypoints"] = [value for x, y, v in points.tolist() for value in (x, y, int(v))]
            annotation["num_keypoints"] = int(np.count_nonzero(points[:, 2]))
        annotations.append(annotation)
    return annotations


def _segmentation(mask: Array, *, as_polygons: bool) -> dict[str, Any] | list[list[float]]:
    if as_polygons and mask.any():
        outlines = trace(mask)
        without_holes = all(_is_clockwise(outline) for outline in outlines)
        if without_holes and np.array_equal(rle.rasterize(outlines, *mask.shape), mask):
            return [outline.reshape(-1).tolist() for outline in outlines]
    return rle.encode(mask)


def trace(mask: Bool[Array, "H W"]) -> list[Float[Array, "_ 2"]]:
    """The outlines of a mask along the edges of its pixels, each as its corners (x, y).

    Walking along an outline, the object is on the right: outer outlines turn clockwise (y points down), those
    of holes counter-clockwise. Pixels that only touch at a corner belong to different outlines.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    vertical = np.diff(padded[1:-1], axis=1)  # H, W + 1: 1 at an object's left edges, -1 at its right ones
    horizontal = np.diff(padded[:, 1:-1], axis=0)  # H + 1, W: 1 at upper edges, -1 at lower ones
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}  # from each (y, x), the directions that an edge leads in
    for edges, value, direction in (
        (horizontal, 1, (0, 1)),
        (vertical, -1, (1, 0)),
        (horizontal, -1, (0, -1)),
        (vertical, 1, (-1, 0)),
    ):
        offset = max(-direction[0], 0), max(-direction[1], 0)  # an edge walked backwards starts at its other end
        for y, x in (np.argwhere(edges == value) + offset).tolist():
            steps.setdefault((y, x), []).append(direction)

    outlines = []
    for start in sorted(steps):
        while steps[start]:
            corners: list[tuple[int, int]] = []
            (y, x), previous = start, (0, 0)
            while not corners or (y, x) != start:
                choices = steps[y, x]
                right = (previous[1], -previous[0])
                direction = right if right in choices else choices[0]
                choices.remove(direction)
                if direction != previous:
                    corners.append((x, y))
                y, x, previous = y + direction[0], x + direction[1], direction
            outlines.append(np.array(corners, np.float64))
    return outlines


def _is_clockwise(outline: Array) -> bool:
    x, y = outline.T
    return bool((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0)


def _write_png(image: Array, path: Path) -> None:
    from PIL import Image

    channels = image.shape[2]
    if channels not in _MODES:
        raise DataError(f"write_coco: a PNG file holds 1 to 4 channels, got {channels}")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[:, :, 0] if channels == 1 else image).save(path, format="PNG")
