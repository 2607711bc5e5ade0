"""kernels/setting.py."""

import threading

import pytest

from refnet.errors import ArgumentError
from refnet.kernels.setting import Setting


def test_the_first_value_holds_until_another_is_set():
    setting = Setting("speed", ("slow", "fast"))
    assert setting.get() == "slow"
    setting.set("fast")
    assert setting.get() == "fast"
    with setting.within("slow"):
        assert setting.get() == "slow"
        with setting.within("fast"):
            assert setting.get() == "fast"
        assert setting.get() == "slow"
    assert setting.get() == "fast"


def test_a_block_is_its_thread_s_own():
    setting = Setting("speed", ("slow", "fast"))
    seen = []
    with setting.within("fast"):
        thread = threading.Thread(target=lambda: seen.append(setting.get()))
        thread.start()
        thread.join()
    assert seen == ["slow"]


def test_other_values_are_refused_and_change_nothing():
    setting = Setting("speed", ("slow", "fast"))
    with pytest.raises(ArgumentError, match="speed: expected one of slow, fast, got 'warp'"):
        setting.set("warp")
    with pytest.raises(ArgumentError, match="got 'warp'"), setting.within("warp"):
        pass
    assert setting.get() == "slow"
