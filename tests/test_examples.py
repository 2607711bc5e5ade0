"""Every program in examples/ runs as its docstring says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the small network, after a few steps: it finds nothing yet."""
    folder = tmp_path_factory.mktemp("run")
    flags = "--steps 2 --batch-size 2 --val-count 2 --backbone.width 8 --fpn.channels 16 --rpn.channels 16"
    run("-m", "refnet", "train", "shapes", "--out", folder / "shapes", *flags.split(), cwd=folder)
    return folder / "shapes"


def test_every_example_is_tested_here():
    tested = {
        "detect_one_image.py",
        "gradient_of_an_op.py",
        "trace_the_pipeline.py",
        "train_on_shapes.py",
        "write_a_kernel.py",
    }
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_gradient_of_an_op(tmp_path):
    assert run(EXAMPLES / "gradient_of_an_op.py", cwd=tmp_path).endswith("both equal central differences\n")


def test_write_a_kernel(tmp_path):
    """The mistake is found, its reproduction runs, and the kernel without it keeps its contract."""
    output = run(EXAMPLES / "write_a_kernel.py", cwd=tmp_path)
    first, _, rest = output.partition("to see it again:\n")
    assert "an IoU that equals the threshold" in first
    program, _, report = rest.partition("\nnms: nms on the CPU keeps its contract\n")
    assert "calls refused     6" in report
    (tmp_path / "again.py").write_text(program)
    assert run(tmp_path / "again.py", cwd=tmp_path) == "specification:\n[0 1]\nkernel:\n[0]\n"


def test_train_on_shapes(tmp_path):
    output = run(EXAMPLES / "train_on_shapes.py", "--steps", "3", "--batch-size", "2", cwd=tmp_path)
    assert "mask_loss" in output
    assert "an unseen image has" in output


def test_trace_the_pipeline(tmp_path):
    output = run(EXAMPLES / "trace_the_pipeline.py", cwd=tmp_path)
    stages = [line.split(":")[0].split(" (")[0] for line in output.splitlines() if line and not line.startswith(" ")]
    expected = ["transform", "resnet", "fpn", "rpn", "anchors", "proposals", "targets", "losses", "backward"]
    positions = [next(i for i, stage in enumerate(stages) if stage.startswith(name)) for name in expected]
    assert positions == sorted(positions)
    assert "Tensor float32 2x32x32x64" in output  # P2 of two images


def test_detect_one_image(small_run, tmp_path):
    run(EXAMPLES / "detect_one_image.py", small_run, cwd=tmp_path)
    with Image.open(tmp_path / "detected.png") as picture:
        assert picture.size == (384, 384)

    Image.new("L", (100, 60)).save(tmp_path / "gray.png")
    run(
        EXAMPLES / "detect_one_image.py",
        small_run,
        tmp_path / "gray.png",
        "--out",
        tmp_path / "found.png",
        cwd=tmp_path,
    )
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.size[0] >= 384
