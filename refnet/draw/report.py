"""A run on one page: figures, curves, and predictions beside the ground truth. One file without any links."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

from refnet.arrays import Array
from refnet.draw import page
from refnet.draw.curves import Theme, loss_curves, png_bytes, precision_recall_curves
from refnet.draw.pictures import draw_side_by_side
from refnet.errors import ArgumentError, DataError
from refnet.rcnn.structures import Detections, GroundTruth

WIDEST = 1600  # pixels of a pair of pictures; larger ones are shrunk, or the page would be hundreds of megabytes

FIGURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR 1",
    "ar10": "AR 10",
    "ar100": "AR 100",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
    "ar": "AR",
    "ar50": "AR50",
    "ar75": "AR75",
}
KINDS = {"box": "boxes", "mask": "masks", "keypoints": "keypoints"}  # what is evaluated, by its key in the results


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image with what is there and what was found.

    Attributes:
        image: (H, W, C).
        truth: its objects.
        detections: what was found.
        score: how well the two agree, 0 to 1: ``refnet.evaluate.panoptic_quality``.
        name: the image's file name or number.
    """

    image: UInt8[Array, "H W C"]
    truth: GroundTruth
    detections: Detections
    score: float
    name: str


def write_report(
    run_dir: str | PathLike[str],
    *,
    class_names: Sequence[str] = (),
    examples: Sequence[Example] = (),
    worst: int = 6,
    others: int = 6,
    min_score: float = 0.5,
    skeleton: Sequence[tuple[int, int]] = (),
) -> Path:
    """Write ``report.html`` in the folder of a run, of the files that lie there.

    ``config.json`` must be there: the configuration. ``metrics.jsonl`` has a line for each step of training;
    ``results.json`` is ``Evaluation.to_json()``, with the mappings "timing" and "machine" from names to values beside
    its own keys. Where one of the two is missing the page says so.

    Args:
        class_names: for the labels in the pictures.
        examples: images to choose the pictures from, the more the better.
        worst: how many pictures to show of those with the lowest scores.
        others: how many of the rest, spread evenly over their scores.
        min_score: detections below it aren't drawn.
        skeleton: pairs of keypoints, from 0, that a line joins in the pictures.

    Returns:
        The path of the page.

    Raises:
        DataError: a file is malformed, or the configuration is missing.
        ArgumentError: `worst` or `others` is negative.
    """
    if worst < 0 or others < 0:
        raise ArgumentError(f"write_report: worst and others must be 0 or more, got {worst} and {others}")
    folder = Path(run_dir)
    config = _read_mapping(folder / "config.json")
    if config is None:
        raise DataError(f"{folder / 'config.json'}: expected the run's configuration, found no such file")
    metrics = _read_lines(folder / "metrics.jsonl")
    results = _read_mapping(folder / "results.json")
    missing = {"box", "mask", "recall", "images", "objects"} - set(results) if results is not None else set()
    if missing:
        raise DataError(f"{folder / 'results.json'}: the keys {', '.join(sorted(missing))} are missing")
    timing = _training_time(metrics) | dict(results.get("timing", {}) if results else {})
    machine = dict(results.get("machine", {}) if results else {})
    body = "\n".join(
        [
            "<h1>Training report</h1>",
            f"<p>{page.escape(_subtitle(metrics, results))}</p>",
            _headline(results, timing, machine),
            _evaluation(results),
            _pictures(examples, class_names, worst, others, min_score, skeleton),
            _training(metrics),
            "<h2>Configuration</h2>",
            f'<div class="card scroll">{page.tree(config)}</div>',
            "<h2>Time and machine</h2>",
            _facts_or_note(timing, "No time was recorded."),
            _facts_or_note(machine, "No machine was recorded."),
        ]
    )
    path = folder / "report.html"
    path.write_text(page.page("refnet: training report", body), encoding="utf-8")
    return path


def _subtitle(metrics: list[dict[str, Any]], results: Mapping[str, Any] | None) -> str:
    parts = [f"{len(metrics):,} steps of training" if metrics else "no training recorded"]
    if results is None:
        parts.append("not evaluated")
    else:
        parts.append(f"evaluated on {results['images']:,} images with {results['objects']:,} objects")
    return ", ".join(parts)


def _headline(results: Mapping[str, Any] | None, timing: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    tiles = []
    for kind in KINDS:
        figures = results.get(kind) if results else None
        if figures is not None:
            tiles.append(page.tile(f"{kind} AP", page.percent(figures["ap"])))
            tiles.append(page.tile(f"{kind} AP50", page.percent(figures["ap50"])))
    if "training, seconds" in timing:
        tiles.append(page.tile("training", _duration(timing["training, seconds"])))
    if "processor" in machine:
        tiles.append(page.tile("processor", str(machine["processor"]), text=True))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _evaluation(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "<h2>Evaluation</h2><p>There are no results: the run was not evaluated.</p>"
    kinds = {kind: results[kind] for kind in KINDS if results.get(kind) is not None}
    parts = [
        "<h2>Evaluation</h2>",
        "<p>COCO's average precision (AP) and average recall (AR) in percent, over thresholds of 0.50 to 0.95 unless one is "
        "named: of the IoU of boxes and masks, and of the OKS of keypoints. Small objects have fewer than 32² pixels, "
        "large ones more than 96². A dash: no such object.</p>",
        *_figure_tables(kinds),
        "<h3>Classes</h3>",
        page.table(
            ["class", *(f"{kind} {FIGURES[key]}" for kind in kinds for key in ("ap", "ap50", "ap75"))],
            [
                [
                    entries[0]["name"],
                    *(page.percent(entry[key]) for entry in entries for key in ("ap", "ap50", "ap75")),
                ]
                for entries in zip(*(figures["classes"] for figures in kinds.values()), strict=True)
            ],
        ),
        "<h3>Precision and recall</h3>",
    ]
    for kind, figures in kinds.items():

        def draw(theme: Theme, figures: Any = figures, title: str = KINDS[kind]) -> Figure:
            return precision_recall_curves(figures, results["recall"], title=title, theme=theme)

        parts.append(_curves(draw, f"precision against recall, {kind}"))
    return "\n".join(parts)


def _figure_tables(kinds: Mapping[str, Any]) -> list[str]:
    """A table of the figures for each set of kinds that have the same ones."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for kind, figures in kinds.items():
        shown = tuple(key for key in FIGURES if key in figures)
        tables.setdefault(shown, []).append([kind, *(page.percent(figures[key]) for key in shown)])
    return [page.table(["", *(FIGURES[key] for key in shown)], rows) for shown, rows in tables.items()]


def _pictures(
    examples: Sequence[Example],
    class_names: Sequence[str],
    worst: int,
    others: int,
    min_score: float,
    skeleton: Sequence[tuple[int, int]],
) -> str:
    if not examples:
        return ""
    ranked = sorted(examples, key=lambda example: example.score)
    rest = ranked[worst:]
    spread = sorted({round(i) for i in np.linspace(0, len(rest) - 1, min(others, len(rest)))}) if rest else []
    parts = [
        "<h2>Predictions</h2>",
        f"<p>Each picture shows the prediction on the left, the ground truth on the right. They are ranked by panoptic "
        "quality (PQ; Kirillov et al. 2019): the IoU summed over the pairs of detection and object that match, divided by "
        f"the mean number of both. 1 is perfect. Detections that score below {min_score:g} aren't shown.</p>",
    ]
    worst_title = f"The worst of {len(ranked):,} images"
    for title, chosen in ((worst_title, ranked[:worst]), ("Others, from worse to better", [rest[i] for i in spread])):
        if chosen:
            figures = "".join(_picture(example, class_names, min_score, skeleton) for example in chosen)
            parts.append(f'<h3>{title}</h3><div class="grid">{figures}</div>')
    return "\n".join(parts)


def _picture(
    example: Example, class_names: Sequence[str], min_score: float, skeleton: Sequence[tuple[int, int]]
) -> str:
    drawn = draw_side_by_side(
        example.image, example.detections, example.truth, class_names, min_score=min_score, skeleton=skeleton
    )
    picture = Image.fromarray(drawn)
    picture.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    caption = f"PQ <b>{example.score:.2f}</b> · {page.escape(example.name)}"
    return page.figure(buffer.getvalue(), f"{example.name}: prediction and ground truth", caption)


def _training(metrics: list[dict[str, Any]]) -> str:
    if not metrics:
        return "<h2>Training</h2><p>There are no metrics: no step was recorded.</p>"
    curves = _curves(lambda theme: loss_curves(metrics, theme=theme), "losses over the steps")
    names = ["loss", *(name for name in metrics[0] if name.endswith("_loss"))]
    share = max(1, len(metrics) // 20)
    rows = []
    for name in names:
        values = [row[name] for row in metrics if name in row]
        rows.append([
            name.replace("_", " "), page.number(values[0]), page.number(float(np.mean(values[-share:]))),
            page.number(float(np.min(values))),
        ])  # fmt: skip
    return "\n".join(
        [
            "<h2>Training</h2>",
            curves,
            page.table(["", "first step", f"mean of the last {share}", "least"], rows),
        ]
    )


def _curves(draw: Callable[[Theme], Figure], description: str) -> str:
    return page.themed_image(png_bytes(draw("light")), png_bytes(draw("dark")), description)


def _training_time(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What the lines of the metrics say of time."""
    timing: dict[str, Any] = {}
    seconds = [row["seconds"] for row in metrics if "seconds" in row]
    if seconds:
        timing["training, seconds"] = round(float(np.sum(seconds)), 1)
        timing["a step, median seconds"] = float(np.median(seconds))
    speeds = [row["images_per_second"] for row in metrics if "images_per_second" in row]
    if speeds:
        timing["training, median images per second"] = float(np.median(speeds))
    memory = [row["peak_memory_mib"] for row in metrics if "peak_memory_mib" in row]
    if memory:
        timing["training, peak memory in MiB"] = round(float(np.max(memory)), 1)
    return timing


def _facts_or_note(values: Mapping[str, Any], note: str) -> str:
    return f'<div class="card scroll">{page.facts(values)}</div>' if values else f"<p>{note}</p>"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _read_mapping(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no such file.

    Raises:
        DataError: the file holds something else.
    """
    if not path.is_file():
        return None
    return _parse_object(path.read_text(encoding="utf-8"), str(path))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON object a line; none if there is no such file.

    Raises:
        DataError: a line holds something else.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_parse_object(line, f"{path}: line {index}") for index, line in enumerate(lines, start=1)]


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: malformed JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value
