"""The cache of compiled kernels: where it is, and files that are whole whoever writes them."""

import threading
from pathlib import Path

import pytest

from refnet.kernels.cache import cache_folder, write_shared


def test_the_folder_is_the_users_unless_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REFNET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "refnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "refnet"
    monkeypatch.setenv("REFNET_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_writers_of_one_file_leave_one_of_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    texts = [bytes([letter]) * 100_000 for letter in b"abcd"]
    threads = [threading.Thread(target=write_shared, args=(path, text)) for text in texts for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in texts
    assert list(path.parent.iterdir()) == [path]


def test_nothing_stays_of_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()  # where a file can't replace a folder
    with pytest.raises(OSError, match="file"):
        write_shared(tmp_path / "file", b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
