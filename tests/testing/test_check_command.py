"""``refnet check``: what it prints, and with which exit code it ends."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from refnet.cli import DEPARTS, FAILED, main
from refnet.kernel_op import operations
from refnet.kernels.emulator import available

RIGHT = """
from refnet.ops import nms as operation

def nms(boxes, scores, *, iou_threshold, limit=None):
    return operation.specification(boxes, scores, iou_threshold=iou_threshold, limit=limit)

def wrong(boxes, scores, *, iou_threshold, limit=None):
    kept = nms(boxes, scores, iou_threshold=iou_threshold)
    return kept[:limit] if limit else kept
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of kernels, and the present one."""
    (tmp_path / "my_kernels.py").write_text(RIGHT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_kernels", None)


def test_the_list_has_every_operation(capsys):
    assert main(["check", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(operations())
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize("place", ["my_kernels.py:nms", "my_kernels:nms"])
def test_a_right_kernel(mine, capsys, place):
    assert main(["check", "nms", "--kernel", place, "--max-examples", "5"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("nms: nms on the CPU keeps its contract")
    assert "random examples   5" in output


@pytest.mark.parametrize("place", ["my_kernels.py:wrong", "my_kernels:wrong"])
def test_a_wrong_kernel_is_told_with_a_program_that_shows_it(mine, capsys, place):
    assert main(["check", "nms", "--kernel", place, "--max-examples", "20"]) == DEPARTS
    text, _, program = capsys.readouterr().out.partition("to see it again:\n")
    assert "the specification gives:\nint64 (0,)\n[]" in text
    assert "the kernel gives:\nint64 (1,)\n[0]" in text
    done = subprocess.run([sys.executable, "-c", program], cwd=mine, capture_output=True, text=True, check=False)
    assert done.stdout == "specification:\n[]\nkernel:\n[0]\n", done.stderr


def test_without_a_kernel_refnets_own_is_checked(capsys):
    assert main(["check", "relu_forward", "--max-examples", "5"]) == 0
    assert "relu_forward: relu_forward on the CPU keeps its contract" in capsys.readouterr().out


@pytest.mark.skipif(not available(), reason="the emulator needs g++")
def test_a_cuda_source(mine, capsys):
    source = mine / "mine.cu"
    kernel = "__global__ void relu(const float* x, float* y, int n) {{ int t = threadIdx.x; if (t {} n) y[t] = {}; }}"
    flags = ["--entry", "relu", "--signature", "x, out, i32:x.size", "--grid", "1", "--block", "1024"]
    flags += ["--only", "x.size <= 1024", "--max-examples", "5"]
    source.write_text(kernel.format("<", "!(x[t] < 0) ? x[t] : 0"))
    assert main(["check", "relu_forward", "--cuda", str(source), *flags]) == 0
    assert "relu of mine.cu on the emulated GPU keeps its contract" in capsys.readouterr().out
    source.write_text(kernel.format("<=", "!(x[t] < 0) ? x[t] : 0"))
    assert main(["check", "relu_forward", "--cuda", str(source), *flags]) == DEPARTS
    assert "mine.cu:1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kernel", "my_kernels.py:nms"], "expected one of the operations adamw_update, .*, got ''"),
        (["nsm"], "expected one of the operations adamw_update, .*, got 'nsm'"),
        (["nms", "--kernel", "my_kernels"], "expected a kernel as package.module:name or file.py:name"),
        (["nms", "--kernel", "nowhere.py:nms"], "found no file nowhere.py"),
        (["nms", "--kernel", "no_such_module:nms"], "No module named 'no_such_module'"),
        (["nms", "--kernel", "my_kernels:nmz"], "expected a function 'nmz' in my_kernels, found NoneType"),
        (["nms", "--adapter", "boxes"], "--adapter: expected name=convention or name:other_name, got 'boxes'"),
        (["nms", "--cuda", "mine.cu"], "needs --entry, --signature, --grid, --block"),
        (["nms", "--only", "groups == 1"], "expected one of the names"),
        (["nms", "--device", "cuda"], "CuPy"),
    ],
)
def test_what_is_wrong_with_the_flags(mine, capsys, flags, words):
    assert main(["check", *flags]) == FAILED
    assert re.search(words, capsys.readouterr().err)


def test_conventions_of_a_kernel(mine, capsys):
    (mine / "tf.py").write_text(
        "from my_kernels import nms\n\n"
        "def greedy(boxes, scores, max_output_size, iou_threshold):\n"
        "    return nms(boxes[:, [1, 0, 3, 2]].copy(), scores, iou_threshold=iou_threshold, limit=max_output_size)\n"
    )
    flags = ["--adapter", "boxes=yxyx limit=count limit:max_output_size", "--no-refusals", "--max-examples", "5"]
    assert main(["check", "nms", "--kernel", "tf:greedy", *flags]) == 0
    assert "keeps its contract" in capsys.readouterr().out
