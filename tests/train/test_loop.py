"""Equal seeds give equal runs; a run that stopped continues as if it hadn't; what goes wrong is named."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refnet.errors import CheckpointError, ConfigError, WeightsError
from refnet.nn import SGD, AdamW, NonFiniteError
from refnet.rcnn.losses import Losses
from refnet.rcnn.model import MaskRCNN
from refnet.train import RunConfig, TrainingResult, build_model, load_newest, open_source, read_metrics
from refnet.train import train as train_on
from refnet.train.metrics import TIMING
from refnet.train.step import make_optimizer
from tests.train.tiny import StoppingModel, tiny_run

ROOT = Path(__file__).parents[2]


def train(config: RunConfig, out: Path, **options: Any) -> TrainingResult:
    return train_on(config, config.data.training(3), out, progress=False, **options)


def train_apart(out: Path, mode: str = "start", *, stop: int = 0) -> list[str]:
    """The 20 steps of ``tiny_run()`` in a process of their own; how they ended."""
    command = [sys.executable, "-m", "tests.train.tiny", str(out), mode, str(stop)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


def lines(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING} for line in read_metrics(out / "metrics.jsonl")]


def newest_bytes(out: Path) -> bytes:
    return load_newest(out / "checkpoints")[0].read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps without a break."""
    out = tmp_path_factory.mktemp("reference")
    train_apart(out)
    return out


def test_a_line_a_step(reference: Path) -> None:
    found = read_metrics(reference / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(1, 21))
    parts = ["loss", "rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss"]
    assert list(found[0]) == ["step", *parts, "lr", "grad_norm", *TIMING]
    for line in found:
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts[1:]), rel=1e-5)
    learning_rate = tiny_run().train.learning_rate()
    assert [line["lr"] for line in found] == [learning_rate(step) for step in range(20)]


def test_it_learns(reference: Path) -> None:
    found = lines(reference)
    assert sum(line["loss"] for line in found[-5:]) < 0.9 * sum(line["loss"] for line in found[:5])


def test_same_seed_same_bits(reference: Path, tmp_path: Path) -> None:
    train_apart(tmp_path)
    assert lines(tmp_path) == lines(reference)
    assert newest_bytes(tmp_path) == newest_bytes(reference)


def test_another_seed_other_bits(reference: Path, tmp_path: Path) -> None:
    train(tiny_run(seed=1, steps=1), tmp_path)
    assert lines(tmp_path)[0]["loss"] != lines(reference)[0]["loss"]


def test_ten_steps_and_ten_resumed_are_twenty(reference: Path, tmp_path: Path) -> None:
    assert train_apart(tmp_path, stop=10) == ["10", "True", "step-00000010.npz"]
    assert train_apart(tmp_path, "resume") == ["20", "False", "step-00000020.npz"]
    assert lines(tmp_path) == lines(reference)
    assert newest_bytes(tmp_path) == newest_bytes(reference)


def test_resuming_adamw_is_exact_after_a_kill_too(tmp_path: Path) -> None:
    """After the kill there are lines beyond the checkpoint, the last one torn."""
    config = tiny_run(optimizer="adamw", lr=0.001, steps=4)
    train(config, tmp_path / "whole")
    part = tmp_path / "part"
    train(config, part, model=StoppingModel(build_model(config), after=2))
    with (part / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 999.0}) + '\n{"step": 4, "lo')
    train(config, part, resume=True)
    assert lines(part) == lines(tmp_path / "whole")
    assert newest_bytes(part) == newest_bytes(tmp_path / "whole")


def test_a_run_that_lacks_memory_is_resumed_with_checkpoints_of_blocks_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = tiny_run(steps=4)
    train(config, tmp_path / "whole")
    part = tmp_path / "part"
    train(config, part, model=StoppingModel(build_model(config), after=2))
    backbone = replace(config.model.backbone, checkpoint=True)
    config = replace(config, model=replace(config.model, backbone=backbone))
    train(config, part, resume=True)
    assert lines(part) == lines(tmp_path / "whole")


def test_sigterm_finishes_the_step_and_saves_too(tmp_path: Path) -> None:
    config = tiny_run()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stopped = train(config, tmp_path, model=StoppingModel(build_model(config), after=3, number=signal.SIGTERM))
    assert (stopped.steps, stopped.checkpoint.name) == (3, "step-00000003.npz")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_finished_run_is_resumed_without_a_step(reference: Path, tmp_path: Path) -> None:
    train(tiny_run(steps=2), tmp_path)
    before = newest_bytes(tmp_path)
    assert train(tiny_run(steps=2), tmp_path, resume=True).steps == 2
    assert newest_bytes(tmp_path) == before
    assert len(lines(tmp_path)) == 2


def test_checkpoints_come_at_their_intervals_and_at_the_end(tmp_path: Path) -> None:
    train(tiny_run(steps=5, checkpoint_every=2), tmp_path)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000004.npz",
        "step-00000005.npz",
    ]


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    train(tiny_run(steps=1), tmp_path)
    before = newest_bytes(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder without a run"):
        train(tiny_run(steps=1), tmp_path)
    assert newest_bytes(tmp_path) == before


def test_resuming_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny_run(steps=1)
    train(config, tmp_path)
    other = replace(config, model=replace(config.model, rpn=replace(config.model.rpn, nms_threshold=0.6)))
    with pytest.raises(CheckpointError, match=r"rpn\.nms_threshold: expected 0\.7, got 0\.6"):
        train(other, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"lr: expected 0\.02, got 0\.01"):
        train(tiny_run(steps=1, lr=0.01), tmp_path, resume=True)
    shapes = replace(config.data.shapes, classes=("circle", "square", "triangle"))
    with pytest.raises(CheckpointError, match=r"shapes\.classes"):
        train(replace(config, data=replace(config.data, shapes=shapes)), tmp_path, resume=True)


def test_resuming_with_more_steps_is_fine(tmp_path: Path) -> None:
    config = tiny_run(schedule="constant", steps=3)
    train(config, tmp_path / "part")
    train(tiny_run(schedule="constant", steps=4), tmp_path / "part", resume=True)
    train(tiny_run(schedule="constant", steps=4), tmp_path / "whole")
    assert newest_bytes(tmp_path / "part") == newest_bytes(tmp_path / "whole")


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none"):
        train(tiny_run(), tmp_path, resume=True)


class BrokenModel(MaskRCNN):
    """The same network; at its third step one loss is multiplied by `factor`."""

    def __init__(self, model: MaskRCNN, *, factor: float) -> None:
        vars(self).update(vars(model))
        self._factor, self._steps = factor, 0

    def losses(self, *args: Any, **kwargs: Any) -> Losses:
        found = super().losses(*args, **kwargs)
        self._steps += 1
        if self._steps < 3:
            return found
        box = found.box * self._factor
        return replace(found, box=box, total=found.total + box)


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    config = tiny_run(checkpoint_every=2)
    with pytest.raises(NonFiniteError, match="step 3: box_loss must be finite, got nan; all parameters are finite"):
        train(config, tmp_path, model=BrokenModel(build_model(config), factor=np.nan))
    assert load_newest(tmp_path / "checkpoints")[1].step == 2
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_parameter_that_is_not_finite_is_named(tmp_path: Path) -> None:
    config = tiny_run()
    model = build_model(config)
    next(iter(model.parameters().values())).data[0] = np.inf
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=r"step 1: .*parameter backbone\.stem"):
        train(config, tmp_path, model=model)


class BrokenGradient(MaskRCNN):
    """The same network, with a total loss that is finite while its gradient is not."""

    def __init__(self, model: MaskRCNN) -> None:
        vars(self).update(vars(model))

    def losses(self, *args: Any, **kwargs: Any) -> Losses:
        found = super().losses(*args, **kwargs)
        return replace(found, total=found.total + (found.class_ * 0.0) ** 0.5)


def test_a_gradient_that_is_not_finite_is_named_and_nothing_moves(tmp_path: Path) -> None:
    config = tiny_run()
    model = build_model(config)
    before = {name: p.data.copy() for name, p in model.parameters().items()}
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteError, match=r"step 1: the losses are finite, but .*gradient of backbone"),
    ):
        train(config, tmp_path, model=BrokenGradient(model))
    assert all(np.array_equal(before[name], p.data) for name, p in model.parameters().items())


@pytest.mark.parametrize(
    ("layers", "moving", "still"),
    [
        ("heads", ("fpn.", "rpn.", "box_head.", "mask_head."), ("backbone.",)),
        ("5+", ("fpn.", "backbone.stages.3"), ("backbone.stem", "backbone.stages.2")),
        ("4+", ("backbone.stages.3", "backbone.stages.2"), ("backbone.stem", "backbone.stages.1")),
        ("3+", ("backbone.stages.1",), ("backbone.stem", "backbone.stages.0")),
        (r"(rpn|mask_head)\..*", ("rpn.", "mask_head."), ("fpn.", "box_head.", "backbone.")),
    ],
)
def test_only_the_asked_for_layers_are_trained(
    tmp_path: Path, layers: str, moving: tuple[str, ...], still: tuple[str, ...]
) -> None:
    config = tiny_run(steps=1, warmup_steps=0, layers=layers)
    train(config, tmp_path)
    first, last = build_model(config).parameters(), open_source(tmp_path).model()[0].parameters()
    moved = {name for name, p in first.items() if not np.array_equal(p.data, last[name].data)}
    for prefix in moving:
        assert any(name.startswith(prefix) for name in moved), prefix
    assert not [name for name in moved if name.startswith(still)]


def test_layers_that_match_nothing_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head_of_boxes"):
        train(tiny_run(layers="head_of_boxes"), tmp_path)


def test_biases_and_norms_do_not_decay() -> None:
    config = tiny_run().train
    parameters = build_model(tiny_run()).parameters()
    before = {name: p.data.copy() for name, p in parameters.items()}
    for kind, optimizer in ((SGD, config), (AdamW, replace(config, optimizer="adamw"))):
        built = make_optimizer(parameters, replace(optimizer, weight_decay=0.5))
        assert isinstance(built, kind)
        for parameter in parameters.values():
            parameter.grad = np.zeros_like(parameter.data)
        built.step(0.1)
        shrunk = {name for name, p in parameters.items() if abs(p.data).sum() < 0.99 * abs(before[name]).sum()}
        assert shrunk == {name for name, p in parameters.items() if p.ndim > 1}
        assert {name for name in parameters if name.endswith("bias") or ".norm." in name}.isdisjoint(shrunk)


def test_weights_of_another_run_are_taken(reference: Path, tmp_path: Path) -> None:
    trained = load_newest(reference / "checkpoints")[1].model
    model = build_model(tiny_run(seed=5, weights=reference))
    assert all(np.array_equal(array, trained[name]) for name, array in model.state().items())

    config = tiny_run(seed=5, weights=reference, exclude=(r"(box|mask)_head\..*",))
    config = replace(config, model=replace(config.model, num_classes=5))
    fresh = build_model(replace(config, train=replace(config.train, weights=None, exclude=()))).state()
    for name, array in build_model(config).state().items():
        expected = fresh if name.startswith(("box_head.", "mask_head.")) else trained
        assert np.array_equal(array, expected[name]), name


def test_weights_that_do_not_fit_are_an_error(reference: Path) -> None:
    config = tiny_run(weights=reference)
    with pytest.raises(WeightsError, match=r"box_head\.classes\.weight: expected shape"):
        build_model(replace(config, model=replace(config.model, num_classes=5)))
    without_masks = replace(config.model, mask_head=replace(config.model.mask_head, enabled=False))
    with pytest.raises(WeightsError, match=r"unexpected .*\n.*mask_head"):
        build_model(replace(config, model=without_masks))


def test_the_total_is_what_is_minimised(tmp_path: Path) -> None:
    config = tiny_run(steps=1)
    losses = replace(config.model.losses, mask_weight=2.0)
    train(replace(config, model=replace(config.model, losses=losses)), tmp_path)
    (line,) = lines(tmp_path)
    unweighted = sum(line[f"{part}_loss"] for part in ("rpn_class", "rpn_box", "class", "box", "mask"))
    assert line["loss"] == pytest.approx(unweighted + line["mask_loss"], rel=1e-5)


CTRL_C = """
import sys
from pathlib import Path
from refnet.train import train
from tests.train.tiny import StoppingModel, tiny_run

config = tiny_run(steps=100_000, checkpoint_every=100_000)
result = train(config, config.data.training(3), Path(sys.argv[1]))
print(result.steps, result.interrupted)
"""


def test_ctrl_c_from_outside_saves_and_ends(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", CTRL_C, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        metrics = tmp_path / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    steps, interrupted = out.split()
    assert interrupted == "True"
    assert load_newest(tmp_path / "checkpoints")[1].step == int(steps) == len(lines(tmp_path)) >= 3
