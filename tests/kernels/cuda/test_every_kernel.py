"""The driver for compute-sanitizer, in the emulator: its checker watches a few operations in all their settings."""

import pytest

from refnet.kernels.cuda import KERNELS, every_kernel
from refnet.kernels.emulator import available
from refnet.testing import Call


@pytest.mark.skipif(not available(), reason="g++ isn't installed: CUDA kernels aren't emulated")
def test_a_few_operations_in_the_emulator(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_kernel.main(["--emulated", "nms", "roi_align_grad_features"]) == 0
    made, passed_over = (int(part.split()[0]) for part in capsys.readouterr().out.split(", "))
    assert made > 100
    assert passed_over == 0


def test_every_operation_has_calls_in_each_of_its_settings() -> None:
    assert set(every_kernel.SETTINGS) <= set(KERNELS)
    titles = [title for title, _, _ in every_kernel.calls("crop_and_resize_grad_images")]
    assert len(titles) == len(set(titles))
    assert sum(title.endswith(": by atomics") for title in titles) == len(titles) // 2


def test_an_error_names_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: object) -> object:
        raise RuntimeError("illegal address")

    monkeypatch.setattr(every_kernel, "KERNELS", {"relu_forward": broken})
    with pytest.raises(RuntimeError, match="illegal address") as caught:
        every_kernel.main(["--emulated", "relu_forward"])
    assert caught.value.__notes__[0].startswith("relu_forward: ")
    assert isinstance(next(call for _, _, call in every_kernel.calls("relu_forward")), Call)
