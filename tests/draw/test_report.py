import json
import os
import platform
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from refnet.data import Shapes
from refnet.draw import Example, loss_curves, machine_facts, png_bytes, precision_recall_curves, write_report
from refnet.errors import ArgumentError, DataError
from refnet.evaluate import evaluate, panoptic_quality
from refnet.rcnn.structures import Detections

NASTY = "<script>alert('&$x$')</script>"


def detections(truth, score):
    scores = np.full(len(truth), score, np.float32)
    return Detections(boxes=truth.boxes, classes=truth.classes, scores=scores, masks=truth.masks)


def metrics(steps=60):
    rows = []
    for step in range(1, steps + 1):
        parts = {"rpn_class_loss": 1 / step, "mask_loss": 0.5}
        timing = {"seconds": 0.5, "images_per_second": 16.0, "peak_memory_mib": 300.0 + step}
        rows.append({"step": step, "loss": sum(parts.values())} | parts | {"lr": 0.01, "grad_norm": 2.0} | timing)
    return rows


@pytest.fixture
def run(tmp_path):
    """The folder of a run, and examples of which every other is missed completely."""
    dataset = Shapes(count=6, seed=0)
    samples = list(dataset)
    answers = [detections(s.truth, 0.9 if i % 2 else 0.2) for i, s in enumerate(samples)]
    results = evaluate(dataset, answers).to_json()
    results["box"]["classes"][0]["name"] = results["mask"]["classes"][0]["name"] = NASTY
    results |= {"timing": {"evaluation, seconds": 1.25}, "machine": machine_facts() | {"note": NASTY}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 60, NASTY: NASTY}, "sizes": [[1, 2], [3]]}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics()))
    examples = [
        Example(image=s.image, truth=s.truth, detections=d, score=panoptic_quality(s.truth, d), name=f"{NASTY}{i}")
        for i, (s, d) in enumerate(zip(samples, answers, strict=True))
    ]
    return tmp_path, examples


class Page(HTMLParser):
    """Collects a page's tags, what it refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.words, self.open = [], [], [], []
        self.feed(text)
        assert not self.open  # every tag is closed

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "srcset", "href", "action", "data", "xmlns")]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def build(run, **options):
    folder, examples = run
    path = write_report(folder, class_names=(NASTY, "circle", "triangle"), examples=examples, **options)
    assert path == folder / "report.html"
    return Page(path.read_text())


def test_page_holds_everything_and_needs_nothing(run):
    page = build(run)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    text = (run[0] / "report.html").read_text()
    assert "http" not in text
    assert "url(" not in text
    words = " ".join(page.words)
    for expected in (
        "box AP", "mask AP50", "training", machine_facts()["processor"], NASTY, "circle", "Precision and recall",
        "The worst of 6 images", "rpn class loss", "mean of the last 3", "Configuration", "(1, 2), (3)",
        "evaluation, seconds", "1.250", "NumPy", np.__version__, "360.0",
    ):  # fmt: skip
        assert expected in words, expected
    assert page.tags.count("figure") == 6
    assert page.tags.count("picture") == 3  # losses, precision of boxes and of masks, each for light and dark


def test_the_worst_come_first(run):
    page = build(run, worst=3, others=2)
    shown = [w for w in page.words if NASTY in w and w.startswith(" · ")]
    assert [w[-1] for w in shown] == ["0", "2", "4", "1", "5"]  # three missed, and both ends of the rest


def test_box_only_results(run):
    folder, _ = run
    results = json.loads((folder / "results.json").read_text()) | {"mask": None}
    (folder / "results.json").write_text(json.dumps(results))
    words = " ".join(build(run).words)
    assert "box AP" in words
    assert "mask AP" not in words


def test_missing_parts_are_said_to_be_missing(run):
    folder, _ = run
    (folder / "results.json").unlink()
    (folder / "metrics.jsonl").unlink()
    words = " ".join(Page(write_report(folder).read_text()).words)
    assert "the run was not evaluated" in words
    assert "no step was recorded" in words
    assert "No machine was recorded" in words
    assert "Predictions" not in words


@pytest.mark.parametrize(("name", "text", "message"), [
    ("config.json", None, "expected the run's configuration, found no such file"),
    ("config.json", "[1]", "expected a JSON object, got list"),
    ("results.json", "{", "malformed JSON"),
    ("results.json", '{"box": null}', "the keys images, mask, objects, recall are missing"),
    ("metrics.jsonl", '{"step": 1, "loss": 2}\n{"step"', "line 2: malformed JSON"),
    ("metrics.jsonl", '{"step": 1}\n', "each with 'step' and 'loss'"),
])  # fmt: skip
def test_malformed_files_are_rejected(run, name, text, message):
    path = run[0] / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        write_report(run[0])


def test_negative_counts_are_rejected(run):
    with pytest.raises(ArgumentError, match="worst and others"):
        write_report(run[0], worst=-1)


def test_lines_of_the_loss_curves():
    figure = loss_curves(metrics(200))
    losses, rate, norm = figure.axes
    assert [t.get_text() for t in losses.get_legend().get_texts()] == ["total", "rpn class", "mask"]
    every, mean = losses.get_lines()[:2]
    values = every.get_ydata()
    np.testing.assert_allclose(mean.get_ydata()[100], values[97:101].mean())  # a fiftieth of 200 steps
    np.testing.assert_allclose(mean.get_ydata()[1], values[:2].mean())
    assert (rate.get_lines()[0].get_ydata() == 0.01).all()
    assert norm.get_title(loc="left") == "norm of the gradient"
    assert png_bytes(figure).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="at least one step"):
        loss_curves([])


def test_lines_of_the_precision_recall_curves():
    recall = np.linspace(0, 1, 101).tolist()

    def curves(classes, absent=None, title="boxes"):
        rows = [None if k == absent else [k / classes] * 101 for k in range(classes)]
        content = {"classes": [{"name": f"c{k}"} for k in range(classes)], "precision": {"0.50": rows, "mean": rows}}
        return precision_recall_curves(content, recall, title=title).axes

    few = curves(4, absent=1)
    assert [t.get_text() for t in few[0].get_legend().get_texts()] == ["c0", "c2", "c3", "mean of classes"]
    assert few[0].get_lines()[-1].get_ydata()[0] == pytest.approx((0 + 2 / 4 + 3 / 4) / 3)
    assert few[1].get_title(loc="left") == "boxes, mean of IoU 0.50 to 0.95"
    assert curves(2, title="keypoints")[0].get_title(loc="left") == "keypoints, OKS 0.50"
    many = curves(80)
    assert [t.get_text() for t in many[0].get_legend().get_texts()] == ["mean of classes"]
    assert curves(1, absent=0)[0].get_legend() is None


def test_machine_facts_name_neither_machine_nor_folders():
    facts = machine_facts()
    assert {"processor", "cores", "Python", "NumPy", "BLAS"} <= set(facts)
    text = json.dumps(facts)
    assert platform.node() not in text or len(platform.node()) < 4
    assert os.path.expanduser("~") not in text
    assert "/" not in facts["BLAS"]


def test_heavy_libraries_are_imported_when_needed():
    code = (
        "import sys, refnet.data, refnet.evaluate; loaded = {'PIL', 'matplotlib', 'pycocotools', 'scipy'} & set(sys.modules);"
        "assert not loaded, loaded; import refnet.draw; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
