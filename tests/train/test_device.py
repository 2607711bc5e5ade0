"""The whole network on a device that isn't there: arrays of the stand-in for CuPy, and the CUDA kernels emulated.

What is held against the CPU: losses, every gradient, the parameters behind a step, proposals and samples, detections.
And how often the host waits, which on a GPU would cost more than most kernels.

Tolerances: see :mod:`tests.train.passes`; the CPU and the device add in different orders.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import refnet.kernels
import refnet.rcnn.model
from refnet.arrays import device_of, to_host
from refnet.cli import _set_up_process as set_up_process
from refnet.cli import main
from refnet.errors import DeviceError, KernelError
from refnet.kernel_op import operations
from refnet.kernels.cpu import precision as cpu_precision
from refnet.kernels.cuda import KERNELS, conv2d
from refnet.kernels.cuda.cupy_module import import_cupy
from refnet.kernels.emulator import available, running, standin
from refnet.nn import NonFiniteError, Optimizer
from refnet.rcnn.losses import Losses
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.structures import AnchorTargets
from refnet.train import Checkpoint, TrainConfig, load_newest, read_metrics, train
from refnet.train.step import make_optimizer, start_step, train_step
from tests.train.passes import (
    JITTERS,
    NETWORKS,
    SETTINGS,
    Pass,
    batch,
    check_detections,
    detect,
    network,
    within_rounding,
)
from tests.train.tiny import FLAGS, tiny_run

pytestmark = [
    pytest.mark.skipif(not available(), reason="g++ isn't installed: CUDA kernels aren't emulated"),
    pytest.mark.usefixtures("unannotated", "gpu"),
]

SMALLER = (
    *("--shapes.image-size", "32", "--shapes.margin", "8", "--shapes.min-half-size", "4"),
    *("--shapes.max-half-size", "8", "--val-count", "1"),
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """The stand-in in CuPy's place, but for tests that need a GPU, and refnet's kernels for both devices."""
    if request.node.get_closest_marker("gpu"):
        try:
            import_cupy()
        except DeviceError as error:
            pytest.skip(f"no GPU: {error}")
    else:
        monkeypatch.setitem(sys.modules, "cupy", standin)
    refnet.kernels.install()
    yield
    refnet.kernels.uninstall()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_cpus_and_the_host_waits_once(
    monkeypatch: pytest.MonkeyPatch, record_property: Any, name: str
) -> None:
    found = Pass(monkeypatch, name, device="cuda")
    check_pass(monkeypatch, name, found)

    assert found.counts.synchronizations == 1, found.counts.places
    assert found.counts.places[0].startswith("model.py:")
    for what in ("uploads", "operations"):
        record_property(what, getattr(found.counts, what))
    record_property("launches", sum(found.counts.launches.values()))
    assert found.counts.uploads < 100  # images, anchors, targets, indices


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_on_a_gpu_is_the_cpus(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    check_pass(monkeypatch, name, Pass(monkeypatch, name, device="cuda"))


def check_pass(monkeypatch: pytest.MonkeyPatch, name: str, found: Pass) -> None:
    """Assert that a step on a device is the CPU's."""
    exact, cpu = Pass(monkeypatch, name, dtype=np.float64), Pass(monkeypatch, name)
    for field in ("images", "classes", "sources", "foreground", "masks", "keypoints"):
        ours, theirs = (None if (a := getattr(r, field)) is None else to_host(a) for r in (found.rois, cpu.rois))
        np.testing.assert_array_equal(ours, theirs, err_msg=field)
    rounded = [cpu, *(Pass(monkeypatch, name, dtype=np.float64, jitter=k) for k in range(JITTERS))]
    for what in ("losses", "gradients", "parameters"):
        within_rounding(getattr(found, what), getattr(exact, what), [getattr(other, what) for other in rounded])
    assert found.devices == {"cuda"}


def test_a_step_keeps_to_what_kernels_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same under the checker: bounds, initialisation, races and barriers of every kernel of the step."""
    with running(mode="check", seed=3):
        checked = Pass(monkeypatch, "shapes", device="cuda")
    cpu = Pass(monkeypatch, "shapes")
    for name, value in cpu.losses.items():
        np.testing.assert_allclose(checked.losses[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_targets_are_found_where_the_network_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Overlaps are compared and masks sampled there, and nothing goes there that has a number for every anchor."""
    sent: list[tuple[int, ...]] = []
    labelled: list[AnchorTargets] = []
    upload, label = standin.asarray, refnet.rcnn.model.label_anchors

    def send(a: Any, *rest: Any, **options: Any) -> Any:
        sent.append(np.shape(a) if isinstance(a, np.ndarray) else ())
        return upload(a, *rest, **options)

    monkeypatch.setattr(standin, "asarray", send)
    monkeypatch.setattr(refnet.rcnn.model, "label_anchors", lambda *a: labelled.append(label(*a)) or labelled[-1])
    found = Pass(monkeypatch, name, device="cuda")
    assert found.counts.launches["best_objects<float>"] == 2  # of anchors and of proposals
    assert found.counts.launches["best_boxes<float>"] == 1
    images, anchors = labelled[0].labels.shape
    assert device_of((labelled[0].deltas,)) == "cuda"
    assert found.rois.masks is None or device_of((found.rois.masks,)) == "cuda"
    assert {shape[-1] for shape in sent if shape} >= {4}  # boxes were seen
    assert not [shape for shape in sent if anchors in shape or images * anchors in shape]


def test_targets_that_are_found_on_the_host_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    match = refnet.rcnn.model.match

    def on_the_host(anchors: Any, proposals: Any, *rest: Any) -> Any:
        return match([to_host(level) for level in anchors], replace(proposals, boxes=to_host(proposals.boxes)), *rest)

    monkeypatch.setattr(refnet.rcnn.model, "match", on_the_host)
    monkeypatch.setattr(refnet.rcnn.model, "records_to_host", lambda *records: map(brought, records))
    found = Pass(monkeypatch, "shapes", device="cuda")
    assert found.counts.synchronizations > 1
    assert "best_objects<float>" not in found.counts.launches


def brought(record: Any) -> Any:
    """`record` with each of its arrays on the host, one after the other."""
    values = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    return replace(record, **{name: None if value is None else to_host(value) for name, value in values.items()})


@pytest.mark.parametrize("name", ["shapes", "matterport_faithful"])
def test_regions_may_be_sampled_from_boxes_that_are_given(name: str) -> None:
    rng = np.random.default_rng(5)
    given = [np.concatenate([low := rng.uniform(0, 30, (n, 2)), low + rng.uniform(4, 30, (n, 2))], 1) for n in (9, 4)]
    values = []
    for device in ("cpu", "cuda"):
        model = network(name, device=device)
        samples = batch(model)
        with standin.counting() as counts:
            losses = model.losses(
                [sample.image for sample in samples], [sample.truth for sample in samples],
                rng=np.random.default_rng(0), proposals=given,
            )  # fmt: skip
        assert counts.synchronizations == (device == "cuda")
        values.append(losses.as_dict())
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_what_makes_the_host_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = refnet.rcnn.model.rpn_losses

    def curious(*args: Any) -> Any:
        found = losses(*args)
        assert found[0].item() > 0
        return found

    monkeypatch.setattr(refnet.rcnn.model, "rpn_losses", curious)
    counts = Pass(monkeypatch, "shapes", device="cuda").counts
    assert counts.synchronizations == 2
    assert counts.places[1].startswith("autograd.py:")


def test_an_array_that_goes_over_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = refnet.rcnn.model.pool_rois
    monkeypatch.setattr(
        refnet.rcnn.model, "pool_rois", lambda pyramid, *rest: pool([p * np.asarray(p.data) for p in pyramid], *rest)
    )
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        Pass(monkeypatch, "shapes", device="cuda")


@pytest.mark.parametrize("name", ["conv2d_grad_weight", "batched_nms_padded", "max_pool2d_grad"])
def test_a_missing_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    operations()[name].unregister("cuda")
    with pytest.raises(KernelError, match=f"{name}: no kernel for arrays on 'cuda'"):
        Pass(monkeypatch, "shapes", device="cuda")


def test_every_operation_has_a_kernel() -> None:
    assert set(operations()) - set(KERNELS) == set()


class BrokenModel(MaskRCNN):
    """The same network, whose losses are multiplied by `factor` in step number `broken`, and its gradient if `deep`."""

    def __init__(self, model: MaskRCNN, *, broken: int, deep: bool) -> None:
        vars(self).update(vars(model))
        self._broken, self._deep, self._steps = broken, deep, 0

    def losses(self, *args: Any, **kwargs: Any) -> Losses:
        found = super().losses(*args, **kwargs)
        self._steps += 1
        if self._steps != self._broken:
            return found
        if self._deep:  # a loss that is finite while its gradient is not
            return replace(found, total=found.total + (found.class_ * 0.0) ** 0.5)
        return replace(found, box=found.box * np.nan, total=found.total + found.box * np.nan)


@pytest.mark.parametrize(
    ("optimizer", "deep", "message"),
    [
        ("sgd", False, "step 1: box_loss must be finite, got nan; all parameters are finite"),
        ("adamw", True, r"step 1: the losses are finite, but .*gradient of backbone"),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(optimizer: str, deep: bool, message: str) -> None:
    model = BrokenModel(network("shapes", device="cuda"), broken=1, deep=deep)
    settings = replace(SETTINGS, optimizer=optimizer)
    moving: Optimizer = make_optimizer(model.parameters(), settings)
    arrays = {name: parameter.data for name, parameter in model.parameters().items()}
    arrays |= {name: array for name, array in moving.state().items() if not name.endswith(".steps")}
    before = {name: to_host(array).copy() for name, array in arrays.items()}
    with standin.counting() as counts:
        step = start_step(model, moving, batch(model), settings, step=0, lr=0.1)
    assert counts.synchronizations == 1
    with pytest.raises(NonFiniteError, match=message):
        step.values()
    for name, array in before.items():
        np.testing.assert_array_equal(to_host(arrays[name]), array, err_msg=name)
    train_step(model, moving, batch(model), settings, step=1, lr=0.1)
    assert not np.array_equal(to_host(arrays["rpn.deltas.weight"]), before["rpn.deltas.weight"])


def lines(out: Path) -> list[dict[str, float]]:
    return read_metrics(out / "metrics.jsonl")


def test_a_run_waits_once_a_step_and_goes_on_on_either_device(tmp_path: Path) -> None:
    def run(device: str, out: str, *, steps: int, resume: bool = False) -> Checkpoint:
        config = tiny_run(steps=steps, checkpoint_every=100, schedule="constant", device=device)
        train(config, config.data.training(3), tmp_path / out, progress=False, resume=resume)
        return load_newest(tmp_path / out / "checkpoints")[1]

    with standin.counting() as counts:
        begun = run("cuda", "begun", steps=2)
    # the values of the last step are waited for; so is each array of the checkpoint
    assert counts.synchronizations == 2 + 1 + len(begun.model) + len(begun.optimizer)
    assert [line["step"] for line in lines(tmp_path / "begun")] == [1, 2]
    run("cpu", "cpu", steps=1)
    assert list(lines(tmp_path / "cpu")[0]) == list(lines(tmp_path / "begun")[0])
    assert lines(tmp_path / "begun")[0]["loss"] == pytest.approx(lines(tmp_path / "cpu")[0]["loss"], rel=1e-5)

    ends = []
    for device in ("cpu", "cuda"):
        shutil.copytree(tmp_path / "begun", tmp_path / f"on {device}")
        ends.append(run(device, f"on {device}", steps=3, resume=True))
    third = [lines(tmp_path / f"on {device}")[2]["loss"] for device in ("cpu", "cuda")]
    assert third[0] == pytest.approx(third[1], rel=1e-5)
    for ours, theirs in zip((ends[0].model, ends[0].optimizer), (ends[1].model, ends[1].optimizer), strict=True):
        assert list(ours) == list(theirs)
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_detections_are_the_cpus_and_the_host_waits_three_times(name: str) -> None:
    with standin.counting() as counts:
        found = detect(name, device="cuda")
    assert counts.synchronizations == 3, counts.places
    exact = detect(name, dtype=np.float64)
    check_detections(found, exact, [detect(name), *(detect(name, dtype=np.float64, jitter=k) for k in range(JITTERS))])


def test_weights_load_on_the_device_and_come_back() -> None:
    model, there = network("shapes"), network("shapes", device="cuda")
    state = {name: array + 1 for name, array in model.state().items()}
    with standin.counting() as counts:
        there.load_state(state)
    assert counts.synchronizations == 0
    assert {device_of((array,)) for array in there.state().values()} == {"cuda"}
    there.to("cpu")
    for name, array in there.state().items():
        np.testing.assert_array_equal(array, state[name])


def test_a_network_moves_only_where_arrays_can_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cupy")
    with pytest.raises(DeviceError, match="nobody has imported it"):
        network("shapes", device="cuda")


class TestCommands:
    """In this process, where the stand-in is what ``import cupy`` finds."""

    def test_train_eval_and_predict(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run, image = tmp_path / "run", tmp_path / "image.png"
        train_it = ["train", "shapes", *FLAGS, *SMALLER, "--steps", "1", "--out", str(run)]
        assert main([*train_it, "--device", "cuda"]) == 0
        assert 'device = "cuda"' in (run / "config.toml").read_text()
        assert (run / "report.html").exists()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image)
        results: dict[str, list[Any]] = {"cpu": [], "cuda": []}
        for device, found in results.items():
            out = tmp_path / device
            assert main(["eval", str(run), "--device", device, "--out", str(out / "results.json")]) == 0
            assert main(["predict", str(run), str(image), "--device", device, "--out", str(out)]) == 0
            found.append(json.loads((out / "results.json").read_text())["box"])
            found.append([[*row["bbox"], row["score"]] for row in json.loads((out / "detections.json").read_text())])
        assert results["cuda"][0] == results["cpu"][0]
        np.testing.assert_allclose(results["cuda"][1], results["cpu"][1], atol=2e-3)
        assert main([*train_it, "--resume", "--steps", "2", "--device", "cpu"]) == 0
        assert "error" not in capsys.readouterr().err

    @pytest.mark.parametrize(("count", "message"), [(None, "expected CuPy"), (0, "expected a CUDA device, found none")])
    def test_what_is_missing_is_named(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        count: Any,
        message: str,
    ) -> None:
        if count is None:
            monkeypatch.setitem(sys.modules, "cupy", None)  # as if it weren't installed
        else:
            monkeypatch.setattr(standin.cuda.runtime, "getDeviceCount", lambda: count)
        arguments = ["train", "shapes", *FLAGS, "--device", "cuda", "--out", str(tmp_path / "run")]
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("precision", ["float32", "exact-order", "tf32", "bf16"])
    def test_the_precision_reaches_the_convolutions(self, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
        monkeypatch.setattr(conv2d._setting, "_installed", "bf16")
        monkeypatch.setattr(cpu_precision._setting, "_installed", "float32")
        set_up_process(TrainConfig(device="cuda", precision=precision))
        assert conv2d.present_precision() == ("float32" if precision == "exact-order" else precision)

    @pytest.mark.parametrize("precision", ["float32", "exact-order"])
    def test_it_reaches_those_of_a_cpu(self, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
        for before in ("float32", "exact-order"):
            monkeypatch.setattr(cpu_precision._setting, "_installed", before)
            set_up_process(TrainConfig(precision=precision))
            assert cpu_precision.present_precision() == precision

    def test_a_cpu_has_no_tensor_cores(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "shapes", "--precision", "tf32"]) == 2
        assert "must be float32 or exact-order, got tf32 on cpu" in capsys.readouterr().err

    def test_the_specification_does_not_run_on_a_gpu(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "shapes", "--device", "cuda", "--kernels", "specification"]) == 2
        assert "kernels must be tuned on a GPU" in capsys.readouterr().err
