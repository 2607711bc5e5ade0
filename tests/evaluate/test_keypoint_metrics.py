"""COCO's figures for keypoints: by hand, and pycocotools' own way through files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refnet.data import Shapes, ShapesConfig, write_coco
from refnet.data.dataset import Sample
from refnet.errors import ArgumentError, DataError
from refnet.evaluate import CocoEvaluator, coco_results, evaluate
from refnet.evaluate.coco import OKS_SIGMAS, OTHER_SIGMA
from refnet.rcnn.structures import Detections, GroundTruth

CONFIG = ShapesConfig(keypoints=True, max_count=4)


def truth(points, box=(0, 0, 40, 40)):
    points = np.array(points, np.float32).reshape(1, -1, 3)
    return GroundTruth(
        boxes=np.array([box], np.float32), classes=np.array([1]), masks=None, crowd=np.array([False]), keypoints=points
    )


def found(*sets, scores=None):
    points = np.array(sets, np.float32)
    points = np.concatenate([points, np.ones((*points.shape[:2], 1), np.float32)], axis=2)
    count = len(points)
    return Detections(
        boxes=np.tile(np.array([[0, 0, 40, 40]], np.float32), (count, 1)),
        classes=np.ones(count, np.int64),
        scores=np.array(scores or np.linspace(0.9, 0.5, count), np.float32),
        masks=None,
        keypoints=points,
        keypoint_scores=np.zeros(points.shape[:2], np.float32),
    )


class One:
    class_names, category_ids = ("thing",), (5,)

    def __init__(self, entry):
        self.entry = entry

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Sample(image=np.zeros((60, 60, 3), np.uint8), truth=self.entry, image_id=1, file_name="a.png")


def shares(result):
    """At how many of the ten thresholds the only detection is right."""
    return round(10 * result.keypoints.ap)


def test_the_similarity_by_hand():
    """exp(-d² / (2 A (2 sigma)²)) over the labelled points: the third one, far off, isn't."""
    entry = truth([[10, 10, 2], [30, 30, 1], [20, 20, 0]])
    sigma, area = 0.05, 1600
    for distance in (0, 2, 4, 5, 8):
        similarity = (1 + np.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2))) / 2
        result = evaluate(One(entry), [found([[10, 10], [30, 30 + distance], [0, 0]])])
        assert shares(result) == sum(similarity >= t for t in np.linspace(0.5, 0.95, 10))
        assert result.keypoints.ar == pytest.approx(result.keypoints.ap)


def test_sigmas_decide():
    entry, detections = truth([[10, 10, 2]]), [found([[10, 14]])]
    strict, loose = (evaluate(One(entry), detections, oks_sigmas=[sigma]) for sigma in (0.02, 0.2))
    assert shares(strict) == 0
    assert shares(loose) == 10
    assert len(OKS_SIGMAS) == 17
    assert evaluate(One(entry), detections, oks_sigmas=[OTHER_SIGMA]).keypoints.ap == (
        evaluate(One(entry), detections).keypoints.ap
    )


def test_objects_without_labelled_keypoints_do_not_count():
    result = evaluate(One(truth([[0, 0, 0]])), [found([[10, 10]])])
    assert result.keypoints.ap is None


def disturbed(objects, rng):
    """The objects with points and boxes some pixels off, some missing, one of them twice."""
    kept = objects.select(rng.random(len(objects)) < 0.8)
    kept = kept.select(np.append(np.arange(len(kept)), [0] * (len(kept) > 0)).astype(np.int64))
    points = kept.keypoints.copy()
    points[..., :2] += rng.integers(-6, 7, points[..., :2].shape)
    points[..., 2] = 1
    return Detections(
        boxes=kept.boxes, classes=kept.classes, scores=rng.random(len(kept)).astype(np.float32), masks=kept.masks,
        keypoints=points, keypoint_scores=np.zeros(points.shape[:2], np.float32),
    )  # fmt: skip


def test_figures_equal_those_of_pycocotools_through_files(tmp_path):
    dataset = Shapes(CONFIG, count=25, seed=4)
    rng = np.random.default_rng(0)
    detections = [disturbed(sample.truth, rng) for sample in dataset]
    sigmas = (0.03, 0.05, 0.08, 0.1)
    ours = evaluate(dataset, detections, oks_sigmas=sigmas)

    write_coco(dataset, tmp_path / "images", tmp_path / "truth.json")
    results = [
        {key: row[key] for key in ("image_id", "category_id", "keypoints", "score")}
        for row in coco_results(detections, dataset)
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    coco = COCO(str(tmp_path / "truth.json"))
    theirs = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "keypoints")
    theirs.params.kpt_oks_sigmas = np.array(sigmas)
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    figures = list(ours.keypoints.figures().values())
    assert 0.1 < figures[0] < 0.9
    np.testing.assert_allclose([-1 if v is None else v for v in figures], theirs.stats, rtol=1e-12)


def test_json_and_text():
    result = evaluate(One(truth([[10, 10, 2]])), [found([[10, 10]])])
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["keypoints"]["ap50"] == pytest.approx(1)
    assert content["keypoints"]["ap_medium"] == pytest.approx(1)
    assert content["keypoints"]["ap_large"] is None
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["ap", "box", "ap", "points"]
    assert lines[-1].split()[1:4] == ["100.0", "100.0", "100.0"]


def test_results_count_pixels():
    detections = found([[10.5, 20.5], [3, 4]])
    (row,) = coco_results([detections], One(truth([[1, 1, 2], [2, 2, 2]])))
    assert row["keypoints"] == [10, 20, 1, 2.5, 3.5, 1]


def test_what_does_not_fit_is_refused():
    entry, detections = truth([[10, 10, 2]]), found([[10, 10]])
    with pytest.raises(DataError, match="'keypoints' needs keypoints; 1 objects or detections have none"):
        evaluate(One(replace(entry, keypoints=None)), [detections], iou_types=["keypoints"])
    with pytest.raises(DataError, match=r"expected 2 keypoints of all objects and detections, got \[1\]"):
        evaluate(One(entry), [detections], oks_sigmas=(0.1, 0.1))
    with pytest.raises(DataError, match=r"expected one number of keypoints of all .*, got \[1, 2\]"):
        evaluate(One(entry), [found([[10, 10], [20, 20]])])
    with pytest.raises(DataError, match="expected finite keypoints"):
        evaluate(One(entry), [found([[10, np.nan]])])
    with pytest.raises(ArgumentError, match="oks_sigmas must be positive"):
        CocoEvaluator(("a",), (1,), oks_sigmas=(0.1, 0.0))
    assert evaluate(One(replace(entry, keypoints=None)), [detections]).keypoints is None
