"""COCO's figures: cases computed by hand, and pycocotools' own way through files."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refnet.data import Shapes, ShapesConfig, write_coco
from refnet.data.dataset import Sample
from refnet.errors import ArgumentError, DataError
from refnet.evaluate import CocoEvaluator, coco_results, evaluate
from refnet.rcnn.structures import Detections, GroundTruth

SIZE = 60


def box_mask(box):
    x1, y1, x2, y2 = (int(v) for v in box)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def truth(*rows, masks=True):
    """Rows (box, class) or (box, class, crowd); masks are the boxes filled."""
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    return GroundTruth(
        boxes=boxes,
        classes=np.array([row[1] for row in rows], np.int64),
        masks=np.array([box_mask(b) for b in boxes], bool).reshape(-1, SIZE, SIZE) if masks else None,
        crowd=np.array([len(row) > 2 and row[2] for row in rows], bool),
    )


def found(*rows, masks=True):
    """Rows (box, class, score); masks are soft, 0.75 inside of the box and 0.25 outside."""
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    soft = np.array([0.25 + 0.5 * box_mask(b) for b in boxes], np.float32).reshape(-1, SIZE, SIZE)
    return Detections(
        boxes=boxes,
        classes=np.array([row[1] for row in rows], np.int64),
        scores=np.array([row[2] for row in rows], np.float32),
        masks=soft if masks else None,
    )


class Listed:
    """Images 1, 2, ... with the given objects."""

    class_names, category_ids = ("cat", "dog"), (17, 3)

    def __init__(self, *truths):
        self.truths = truths

    def __len__(self):
        return len(self.truths)

    def __getitem__(self, index):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        return Sample(image=image, truth=self.truths[index], image_id=index + 1, file_name=f"{index}.png")


A, B, C = (0, 0, 10, 10), (20, 20, 40, 50), (5, 30, 15, 45)


def test_perfect_detections():
    dataset = Listed(truth((A, 1), (B, 2)), truth((C, 1)), truth())
    result = evaluate(dataset, [found((A, 1, 0.9), (B, 2, 0.6)), found((C, 1, 0.7)), found()])
    for metrics in (result.box, result.mask):
        figures = metrics.figures()
        for name in ("ap_medium", "ap_large", "ar_medium", "ar_large"):  # all objects are small
            assert figures.pop(name) is None
        assert list(figures.values()) == pytest.approx([1] * 8)
        assert [c.ap for c in metrics.classes] == pytest.approx([1, 1])
        assert metrics.precision == pytest.approx(np.ones((3, 2, 101)))
    assert (result.images, result.objects, result.crowds, result.detections) == (3, 3, 0, 3)


def test_no_detections():
    result = evaluate(Listed(truth((A, 1)), truth((B, 1))), [found(), found()])
    for metrics in (result.box, result.mask):
        assert metrics.ap == metrics.ap50 == metrics.ar100 == 0.0
        assert [c.ap for c in metrics.classes] == [0.0, None]
        assert np.isnan(metrics.precision[:, 1]).all()


@pytest.mark.parametrize("detections", [found(), found((A, 1, 0.5))])
def test_nothing_to_find(detections):
    result = evaluate(Listed(truth()), [detections])
    assert set(result.box.figures().values()) == {None}
    assert set(result.mask.figures().values()) == {None}


def test_no_images():
    result = evaluate(Listed(), [])
    assert set(result.box.figures().values()) == {None}
    assert len(result.box.classes) == 2


def test_half_of_the_objects_found():
    result = evaluate(Listed(truth((A, 1)), truth((A, 1))), [found((A, 1, 0.9)), found()])
    assert result.box.ap == pytest.approx(51 / 101)  # precision 1 at the recalls 0.00 to 0.50, 0 beyond
    assert result.box.ar1 == 0.5
    curve = result.mask.precision[0, 0]
    assert curve[:51] == pytest.approx(np.ones(51))
    assert (curve[51:] == 0).all()


def test_a_better_scored_false_positive_halves_precision():
    result = evaluate(Listed(truth((A, 1))), [found((B, 1, 0.9), (A, 1, 0.8))])
    assert result.box.ap == pytest.approx(0.5)
    assert result.mask.ap == pytest.approx(0.5)
    assert result.box.ar1 == 0.0
    assert result.box.ar10 == 1.0


def test_boxes_and_masks_are_measured_apart():
    detection = found(((0, 0, 10, 6.25), 1, 0.9))  # IoU of the box 0.625, of its mask of six rows 0.6
    masks = np.zeros((1, SIZE, SIZE), bool)
    masks[0, :9, :10] = True  # IoU 0.9
    detection = Detections(boxes=detection.boxes, classes=detection.classes, scores=detection.scores, masks=masks)
    result = evaluate(Listed(truth((A, 1))), [detection])
    assert result.box.ap50 == pytest.approx(1)
    assert result.box.ap75 == 0
    assert result.box.ap == pytest.approx(0.3)  # right at 0.50, 0.55, 0.60
    assert result.mask.ap75 == pytest.approx(1)
    assert result.mask.ap == pytest.approx(0.9)  # right at 0.50 to 0.90


def test_detections_in_a_crowd_do_not_count():
    dataset = Listed(truth((A, 1), ((20, 20, 60, 60), 1, True)))
    in_crowd, beside = ((22, 22, 30, 30), 1, 0.95), ((0, 40, 10, 50), 1, 0.95)
    assert evaluate(dataset, [found((A, 1, 0.9), in_crowd)]).box.ap == pytest.approx(1)
    assert evaluate(dataset, [found((A, 1, 0.9), in_crowd)]).mask.ap == pytest.approx(1)
    assert evaluate(dataset, [found((A, 1, 0.9), beside)]).box.ap == pytest.approx(0.5)
    assert evaluate(dataset, [found()]).crowds == 1


def test_size_is_the_mask_s_area():
    box = (0, 0, 36, 36)  # the box has 1296 pixels, medium; the mask 648, small
    objects = truth((box, 1))
    masks = objects.masks.copy()
    masks[:, 18:] = False
    dataset = Listed(GroundTruth(boxes=objects.boxes, classes=objects.classes, masks=masks, crowd=objects.crowd))
    detection = found((box, 1, 0.9))
    detection = Detections(boxes=detection.boxes, classes=detection.classes, scores=detection.scores, masks=masks)
    for metrics in (evaluate(dataset, [detection]).box, evaluate(dataset, [detection]).mask):
        assert metrics.ap_small == pytest.approx(1)
        assert metrics.ap_medium is None
    bare = Listed(truth((box, 1), masks=False))
    assert evaluate(bare, [found((box, 1, 0.9), masks=False)]).box.ap_medium == pytest.approx(1)


def test_boxes_alone():
    dataset, detections = Listed(truth((A, 1))), [found((A, 1, 0.9), masks=False)]
    result = evaluate(dataset, detections)
    assert result.mask is None
    assert result.box.ap == pytest.approx(1)
    assert "segmentation" not in coco_results(detections, dataset)[0]
    with pytest.raises(DataError, match="1 objects or detections have none"):
        evaluate(dataset, detections, iou_types=("bbox", "segm"))
    assert evaluate(dataset, [found((A, 1, 0.9))], iou_types=["segm"]).box is None


def test_detections_by_image_id():
    dataset = Listed(truth((A, 1)), truth((B, 2)))
    result = evaluate(dataset, {2: found((B, 2, 0.5))})
    assert [c.ap for c in result.mask.classes] == [0.0, pytest.approx(1)]
    assert coco_results({2: found((B, 2, 0.5))}, dataset)[0]["category_id"] == 3
    with pytest.raises(DataError, match=r"the dataset hasn't: \[3\]"):
        evaluate(dataset, {3: found()})


def test_same_figures_as_pycocotools_through_files(tmp_path, capsys):
    config = ShapesConfig(max_count=6, min_half_size=6, max_half_size=30, margin=8)
    dataset = Shapes(config, count=25, seed=2)
    rng = np.random.default_rng(0)
    detections = [_disturbed(sample.truth, rng) for sample in dataset]
    result = evaluate(dataset, detections)

    write_coco(dataset, tmp_path, tmp_path / "truth.json")
    capsys.readouterr()
    expected = COCO(tmp_path / "truth.json")
    results = coco_results(detections, dataset)
    for iou_type, metrics in {"bbox": result.box, "segm": result.mask}.items():
        # by masks, COCO.loadRes measures a detection's area by its mask only if there's no box beside it
        rows = [{k: v for k, v in row.items() if iou_type == "bbox" or k != "bbox"} for row in results]
        (tmp_path / "results.json").write_text(json.dumps(rows))
        evaluation = COCOeval(expected, expected.loadRes(str(tmp_path / "results.json")), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures = [-1.0 if v is None else v for v in metrics.figures().values()]
        np.testing.assert_allclose(figures, evaluation.stats, rtol=1e-12)
        assert 0.05 < metrics.ap < 0.95
        for k, entry in enumerate(metrics.classes):
            assert entry.ap == pytest.approx(evaluation.eval["precision"][:, :, k, 0, 2].mean())


def _disturbed(objects, rng):
    """The objects moved by some pixels, some missing, some of the wrong class, and one that isn't there."""
    kept = objects.select(rng.random(len(objects)) < 0.8)
    shift = rng.integers(-3, 4, (len(kept), 2))
    masks = [np.roll(m, s[::-1], (0, 1)) for m, s in zip(kept.masks, shift, strict=True)]
    masks = np.array([*masks, np.eye(128, dtype=bool)])
    boxes = np.concatenate([kept.boxes + np.tile(shift, 2), [[3, 5, 40, 60]]]).astype(np.float32)
    classes = np.append(np.where(rng.random(len(kept)) < 0.2, 1, kept.classes), 2)
    return Detections(boxes=boxes, classes=classes, scores=rng.random(len(boxes)).astype(np.float32), masks=masks)


def test_json_is_plain_and_complete():
    result = evaluate(Listed(truth((A, 1))), [found((A, 1, 0.5))])
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["box"]["ap50"] == pytest.approx(1)
    assert content["mask"]["precision"]["mean"][0][100] == 1
    assert content["mask"]["precision"]["0.75"][1] is None
    assert content["mask"]["classes"][1] == {"name": "dog", "ap": None, "ap50": None, "ap75": None}
    assert len(content["recall"]) == 101
    lines = str(result).splitlines()
    assert lines[0] == "1 images, 1 objects, 1 detections"
    assert lines[2].split()[:3] == ["box", "100.0", "100.0"]


def test_malformed_detections_are_rejected():
    dataset = Listed(truth((A, 1)))
    for detections, message in (
        ([], "expected detections for 1 images, got 0"),
        ([found((A, 1, np.nan))], "expected finite"),
        ([found((A, 0, 0.5))], "classes must be 1 to 2, got 0"),
        ([found((A, 3, 0.5))], "classes must be 1 to 2, got 3"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(dataset, detections)
    infinite = Detections(
        boxes=np.array([[0, 0, np.inf, 1]]), classes=np.array([1]), scores=np.array([0.5]), masks=None
    )
    with pytest.raises(DataError, match="expected finite"):
        evaluate(dataset, [infinite])
    smaller = found((A, 1, 0.5))
    smaller = Detections(
        boxes=smaller.boxes, classes=smaller.classes, scores=smaller.scores, masks=smaller.masks[:, 1:]
    )
    with pytest.raises(DataError, match=r"expected \(60, 60\), got \(59, 60\)"):
        evaluate(dataset, [smaller])
    with pytest.raises(DataError, match="classes must be 1 to 2, got 3"):
        evaluate(Listed(truth((A, 3))), [found()])
    for iou_types in ((), ("points",)):
        with pytest.raises(ArgumentError, match="iou_types"):
            CocoEvaluator(("a",), (1,), iou_types=iou_types)
    evaluator = CocoEvaluator(("a",), (1,))
    evaluator.add(5, truth(), found())
    with pytest.raises(DataError, match="already added"):
        evaluator.add(5, truth(), found())
