"""The driver for compute-sanitizer, in the emulator: its checker watches a few operations in all their settings."""

import pytest

from refnet import ops
from refnet.kernels.cuda import KERNELS, every_kernel
from refnet.kernels.emulator import available


@pytest.mark.skipif(not available(), reason="g++ isn't installed: CUDA kernels aren't emulated")
def test_a_few_operations_in_the_emulator(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_kernel.main(["--emulated", "nms", "roi_align_grad_features"]) == 0
    made, passed_over, failed = (int(part.split()[0]) for part in capsys.readouterr().out.split(", "))
    assert made > 100
    assert (passed_over, failed) == (0, 0)


def test_every_operation_has_calls_in_each_of_its_settings() -> None:
    assert set(every_kernel.SETTINGS) <= set(KERNELS)
    titles = [title for title, _, _ in every_kernel.calls("crop_and_resize_grad_images")]
    assert len(titles) == len(set(titles))
    assert sum(title.endswith(": by atomics") for title in titles) == len(titles) // 2


def test_no_kernel_is_missed_that_the_device_cannot_run() -> None:
    ampere, hopper = every_kernel.written_for(80), every_kernel.written_for(90)
    assert ampere < hopper
    assert all("Wgmma" in name or name == "pack_weights<float, unsigned int>" for _, name in hopper - ampere)


def test_an_operation_that_fails_is_named_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(x: object) -> object:
        raise RuntimeError("illegal address")

    kernels = {"relu_forward": broken, "relu_grad": ops.relu_grad.specification}
    monkeypatch.setattr(every_kernel, "KERNELS", kernels)
    assert every_kernel.main(["--emulated", "relu_forward", "relu_grad"]) == 1
    out = capsys.readouterr().out
    assert "FAILED relu_forward: " in out
    assert "illegal address" in out
    assert "1 operations failed" in out
    assert not out.split("\n")[-2].startswith("0 calls")
