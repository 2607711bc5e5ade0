"""In float32 the golden network computes and selects the same as in float64, but for rounding and near-ties."""

import numpy as np
import pytest

import refnet.kernels
from refnet.autograd import Tensor
from refnet.rcnn.boxes import clip, decode, pairwise_iou
from refnet.rcnn.config import RpnConfig
from refnet.rcnn.proposals import propose
from refnet.rcnn.structures import ImageBatch, RpnOutput
from refnet.rcnn.trace import Trace
from tests.rcnn.golden import Golden, build, configure, golden_images, truth_of
from tests.rcnn.near_ties import Selection, differing, swapped, unexplained
from tests.rcnn.small import vary

LEVELS = ("p2", "p3", "p4", "p5", "p6")
BAR = 1e-3  # of the largest value of each array
DTYPES = (np.float64, np.float32)

pytestmark = pytest.mark.usefixtures("unannotated")


@pytest.fixture(scope="module", autouse=True)
def tuned_kernels():
    refnet.kernels.install()
    yield
    refnet.kernels.uninstall()


@pytest.fixture(scope="module")
def models():
    golden = Golden("torchvision_maskrcnn.eval.npz")
    return [build(golden, dtype) for dtype in DTYPES]


@pytest.fixture(scope="module")
def inference(models) -> list[Trace]:
    traces = [Trace(), Trace()]
    for model, trace in zip(models, traces, strict=True):
        model.detect(golden_images(), trace=trace)
    return traces


@pytest.fixture(scope="module")
def training(models) -> list[Trace]:
    """With the gradients of all parameters besides; inference and training have one configuration."""
    golden = Golden("torchvision_maskrcnn.train.npz")
    assert configure(golden) == models[0].config
    traces = []
    for model in models:
        trace = Trace()
        losses = model.losses(golden_images(), truth_of(golden), rng=np.random.default_rng(0), trace=trace)
        losses.total.backward()
        trace("gradients", {name: parameter.grad for name, parameter in model.parameters().items()})
        traces.append(trace)
    return traces


def deviation(exact: np.ndarray, rounded: np.ndarray) -> float:
    """The largest difference in units of the largest value."""
    if not exact.size:
        return 0.0
    return float(np.abs(exact - rounded).max() / max(np.abs(exact).max(), 1e-3))


def rpn_selection(trace: Trace, image: int, config: RpnConfig, kept: np.ndarray, before: int) -> Selection:
    """What the proposals of one image were chosen from: anchors by their numbers, each level a group."""
    selection = Selection(kept=kept.tolist())
    start = 0
    for group, level in enumerate(LEVELS):
        logits = trace[f"rpn.objectness_logits.{level}"][image, :, 0]
        anchors, deltas = trace[f"anchors.{level}"], trace[f"rpn.deltas.{level}"][image]
        boxes = clip(decode(deltas, anchors, config.delta_std, config.delta_clamp), trace["input.windows"][image])
        cut = np.sort(logits)[::-1][before - 1] if before < len(logits) else logits.min()
        for index in np.flatnonzero(logits >= cut - 0.1):  # and those that would pass with other roundings
            selection.add(
                start + int(index), margin=logits[index] - cut, score=logits[index], box=boxes[index], group=group
            )
        start += len(anchors)
    return selection


def roundings(first: Selection, second: Selection) -> tuple[float, float]:
    """How far apart two values may be whose order differs between the runs: twice the largest difference between both
    runs, of scores, and of the overlaps of kept boxes with all others of their group."""
    common = sorted(set(first.scores) & set(second.scores), key=str)
    score = max(abs(first.scores[key] - second.scores[key]) for key in common)
    overlap = 0.0
    for group in set(first.groups.values()):
        members = [key for key in common if first.groups[key] == group]
        kept = [key for key in members if key in set(first.kept)]
        if kept:
            a, b = (
                pairwise_iou(np.stack([s.boxes[k] for k in kept]), np.stack([s.boxes[k] for k in members]))
                for s in (first, second)
            )
            overlap = max(overlap, float(np.abs(a - b).max()))
    return 2 * score, 2 * overlap


def compare_proposals(traces, sources, config, before) -> tuple[int, int, list[str]]:
    """How many proposals only one run keeps, how many neighbours change places, and what no near-tie explains."""
    count, moved, problems = 0, 0, []
    for image in range(2):
        first, second = (
            rpn_selection(trace, image, config, own[image], before) for trace, own in zip(traces, sources, strict=True)
        )
        score, overlap = roundings(first, second)
        count += len(differing(first, second))
        moved += len(swapped(first, second))
        problems += unexplained(
            first, second, iou_threshold=config.nms_threshold, score_rounding=score, overlap_rounding=overlap
        )
    return count, moved, problems


def proposals_of(trace: Trace, config: RpnConfig, nms_threshold: float = 0.7) -> list[np.ndarray]:
    """The anchors of the proposals of each image, from the outputs of the RPN in a trace."""
    rpn = RpnOutput(
        objectness_logits=[Tensor(trace[f"rpn.objectness_logits.{level}"]) for level in LEVELS],
        deltas=[Tensor(trace[f"rpn.deltas.{level}"]) for level in LEVELS],
    )
    images = ImageBatch(
        pixels=trace["input.pixels"],
        windows=trace["input.windows"],
        scales=trace["input.scales"],
        original_sizes=[image.shape[:2] for image in golden_images()],
    )
    anchors = [trace[f"anchors.{level}"] for level in LEVELS]
    found = propose(rpn, anchors, images, vary(config, {"nms_threshold": nms_threshold}), training=False)
    return [entry.sources for entry in found]


BEFORE_SELECTION = ("input", "backbone", "fpn", "rpn", "anchors", "truth", "gradients", "losses")


def worst_deviations(traces: list[Trace], matched: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The largest deviation of each stage; `matched` says which rows of a stage behind a selection belong together."""
    exact, rounded = traces
    assert set(exact) == set(rounded)
    worst: dict[str, float] = {}
    for name, values in exact.items():
        stage = name.partition(".")[0]
        other = rounded[name]
        if stage not in BEFORE_SELECTION:
            key = next((key for key in matched if name == key or name.startswith(f"{key}.")), None)
            if key is None:
                continue
            values, other = values[matched[key][0]], other[matched[key][1]]
        if stage == "gradients":  # one rectifier that turns changes single entries, so all of them count together
            worst[stage] = max(worst.get(stage, 0.0), float(np.linalg.norm(values - other) / np.linalg.norm(values)))
        elif values.dtype.kind == "f":
            worst[stage] = max(worst.get(stage, 0.0), deviation(values, other))
    return worst


def common_rows(first: list, second: list) -> tuple[np.ndarray, np.ndarray]:
    """Where each name stands in both lists, of those that are in both."""
    place = {name: index for index, name in enumerate(second)}
    pairs = [(index, place[name]) for index, name in enumerate(first) if name in place]
    return tuple(np.array(pairs, np.int64).reshape(-1, 2).T)


def per_image(traces, name: str) -> list[list[np.ndarray]]:
    return [[trace[name.format(image)] for image in range(2)] for trace in traces]


def in_a_row(parts: list[np.ndarray]) -> list[tuple[int, int]]:
    """Names of the entries of all images in a row: the image and the entry's own."""
    return [(image, int(entry)) for image, own in enumerate(parts) for entry in own]


def match_detections(exact: Trace, rounded: Trace, image: int) -> list[tuple[int, int]]:
    """Detections that are the same but for rounding: of one class, and all but equal boxes."""
    names = ("boxes", "classes", "scores")
    (boxes, classes, scores), (others, other_classes, _) = (
        [trace[f"detections.{image}.{name}"] for name in names] for trace in (exact, rounded)
    )
    iou = pairwise_iou(boxes, others.astype(boxes.dtype)) * (classes[:, None] == other_classes)
    best = iou.argmax(axis=1)
    pairs = [(i, int(j)) for i, j in enumerate(best) if iou[i, j] > 0.99]
    assert len({j for _, j in pairs}) == len(pairs)
    assert (np.diff(scores) <= 0).all()
    return pairs


def test_inference_in_float32(models, inference):
    exact, rounded = inference
    config = models[0].config
    sources = per_image(inference, "proposals.{}.sources")
    count, moved, problems = compare_proposals(inference, sources, config.rpn, config.rpn.pre_nms_test)
    assert not problems, problems

    rows = common_rows(*(in_a_row(own) for own in sources))
    matched = {"box_pool": rows, "box_head": rows}
    starts = [np.cumsum([0, *(len(trace[f"detections.{i}.boxes"]) for i in range(2))]) for trace in inference]
    pairs, lost = [], 0
    for image in range(2):
        own = match_detections(exact, rounded, image)
        lost += max(len(trace[f"detections.{image}.boxes"]) for trace in inference) - len(own)
        indices = tuple(np.array(own).T)
        for stage in ("detections", "results"):
            matched[f"{stage}.{image}"] = indices
        pairs.append(np.array(own) + np.array([starts[0][image], starts[1][image]]))
    matched["mask_pool"] = matched["mask_head"] = tuple(np.concatenate(pairs).T)
    worst = worst_deviations(inference, matched)
    report = (
        f"float32, inference: {count} of {sum(map(len, sources[0]))} proposals differ, {moved} neighbours change places, "
        f"{lost} of {starts[0][-1]} detections differ; largest deviations "
        + ", ".join(f"{stage} {value:.1e}" for stage, value in worst.items())
    )
    print(report)
    assert max(worst.values()) <= BAR, report
    # a detection depends on one of few proposals, so none may be lost without a proposal that was
    assert lost <= count, report


def test_training_in_float32(models, training):
    exact, rounded = training
    config = models[0].config
    sources = per_image(training, "proposals.{}.sources")
    count, moved, problems = compare_proposals(training, sources, config.rpn, config.rpn.pre_nms_train)
    assert not problems, problems

    names = []
    for trace in training:
        seen: dict[tuple[int, int], int] = {}
        own = []
        for image, source in zip(trace["rois.images"].tolist(), trace["rois.sources"].tolist(), strict=True):
            seen[image, source] = seen.get((image, source), 0) + 1  # true boxes have no anchor, but an order
            own.append((image, source, seen[image, source]))
        names.append(own)
    rows = common_rows(*names)
    classes = [trace["rois.classes"][own] for trace, own in zip(training, rows, strict=True)]
    changed = int((classes[0] != classes[1]).sum())
    labels = int((exact["anchor_targets.labels"] != rounded["anchor_targets.labels"]).sum())
    foreground = common_rows(
        *([own[row] for row in trace["rois.foreground"]] for trace, own in zip(training, names, strict=True))
    )
    matched = dict.fromkeys(("box_pool", "box_head", "rois.boxes", "rois.deltas"), rows)
    matched |= dict.fromkeys(("mask_pool", "mask_head", "rois.masks"), foreground)
    worst = worst_deviations(training, matched)
    report = (
        f"float32, training: {count} of {sum(map(len, sources[0]))} proposals differ, {moved} neighbours change places, "
        f"{changed} of {len(classes[0])} regions and {labels} of {exact['anchor_targets.labels'].size} anchors have another "
        "class; largest deviations " + ", ".join(f"{stage} {value:.1e}" for stage, value in worst.items())
    )
    print(report)
    assert max(worst.values()) <= BAR, report
    overlap_rounding = 1e-4  # boxes agree to 1e-5 of the image, and those that count are larger than a tenth of it
    for image in range(2):
        own = exact["rois.images"][rows[0]] == image
        best = pairwise_iou(exact["rois.boxes"][rows[0]][own], exact[f"truth.{image}.boxes"]).max(axis=1)
        different = (classes[0] != classes[1])[own]
        assert (np.abs(best[different] - config.roi_targets.positive_iou) <= overlap_rounding).all(), report
    assert labels == 0, report  # anchors are whole pixels: their overlaps are the same numbers in both


def test_as_many_proposals_as_torchvision_takes_by_default(models, inference):
    """A thousand from each level and a thousand in all: more decisions, so more near-ties."""
    config = vary(models[0].config.rpn, {"pre_nms_test": 1000, "post_nms_test": 1000})
    sources = [proposals_of(trace, config) for trace in inference]
    count, moved, problems = compare_proposals(inference, sources, config, 1000)
    report = f"float32: {count} of {sum(map(len, sources[0]))} proposals differ, {moved} neighbours change places"
    print(report)
    assert not problems, (report, problems)
    assert count + moved <= 0.01 * sum(map(len, sources[0])), report


def test_coarser_rounding_turns_more_decisions_and_all_are_near_ties(models, inference):
    """The explanation has something to explain: the RPN's outputs with 8 bits of precision instead of 24."""
    config = models[0].config.rpn
    coarse = Trace(inference[0])
    for name, values in inference[0].items():
        if name.startswith("rpn."):
            mantissa, exponent = np.frexp(values)
            coarse[name] = np.ldexp(np.round(mantissa * 256) / 256, exponent)
    traces = [inference[0], coarse]
    sources = [proposals_of(trace, config) for trace in traces]
    count, _, problems = compare_proposals(traces, sources, config, config.pre_nms_test)
    assert count > 0
    assert not problems, problems


def test_another_threshold_is_no_near_tie(models, inference):
    config = models[0].config.rpn
    sources = [proposals_of(trace, config, nms) for trace, nms in zip(inference, (0.7, 0.6), strict=True)]
    count, _, problems = compare_proposals(inference, sources, config, config.pre_nms_test)
    assert count > 0
    assert problems
