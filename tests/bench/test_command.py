"""``refnet bench``, everything as small as it can be."""

import json
import subprocess
import sys
from pathlib import Path

from refnet.bench import subjects

WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Without())
from refnet.kernels import cpu
from refnet.ops import relu_forward
if "--wrong" in sys.argv:
    sys.argv.remove("--wrong")
    cpu.KERNELS["relu_forward"] = lambda x: relu_forward.specification(x) + 1
from refnet.__main__ import main
sys.exit(main())
"""


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_without_torch_the_kernels_are_compared_with_the_specification(tmp_path: Path) -> None:
    """One subject of each kind, in a process without torch."""
    only = ["convolutions 64x64, forward", "nms 50", "specification ", "evaluation", "peak memory", "scaling: nms"]
    done = bench("--quick", "--only", *only, "--rounds", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LEFT OUT: torch: " in done.stdout
    assert "LEFT OUT: torchvision: " in done.stdout
    document = json.loads((tmp_path / "results.json").read_text())
    assert {"torch", "torchvision"} <= document["left_out"].keys()
    results = {result["subject"]: result for result in document["results"]}
    everything = [subject.name for subject in subjects.subjects(quick=True)]
    assert list(results) == [name for name in everything if any(word in name for word in only)]
    assert results["specification 64x96"]["check"].startswith("the same 5 detections")
    assert results["evaluation of 4 images"]["check"] == "the same 24 figures"
    assert results["nms 50 uniform"]["absent"] == {"torchvision": None}
    assert all(result["spreads"]["kernels/cpu"]["median"] > 0 for result in results.values())
    assert [growth["curve"] for growth in document["growths"]] == ["scaling: nms against boxes"]
    table = (tmp_path / "table.md").read_text()
    assert "| nms 50 uniform | torchvision | reported |  | not measured |" in table
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_wrong_kernel_is_a_failure(tmp_path: Path) -> None:
    done = bench("--wrong", "--quick", "--only", "specification ", "--rounds", 1, "--out", tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wrong result: " in done.stdout
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["results"] == []
    assert document["failures"][0]["reason"].startswith("wrong result: ")


def test_subjects_are_listed() -> None:
    done = bench("--list", "--quick")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [one.name for one in subjects.everything(quick=True)]


def test_what_can_not_be_measured_is_an_error() -> None:
    for flags in (("--only", "no such"), ("--threads", 0), ("--rounds", 0)):
        done = bench(*flags)
        assert done.returncode == 2
        assert "refnet: error: bench: expected words of subjects" in done.stderr


def test_the_planner_is_explained() -> None:
    done = bench("--explain", "--size", 64)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("stem x1: conv2d_forward 1 x 64x64x3 -> 64, 7x7 / 2x2: ")
    assert any(line.startswith("mask x4: conv2d_forward 100 x 14x14x256 -> 256, 3x3: ") for line in lines)
