"""Writing a file so that, at every moment, its name holds either the old content or all of the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends without an exception.

    It is written as ``NAME.partial`` beside `path`, flushed to the disk, and renamed in one step, so that a process
    that is killed, or a machine that loses power, leaves no half of a file behind under the name `path`. If the block
    raises, the partial file is deleted.

    Raises:
        OSError: the disk is full, or the directory can't be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable. Windows can't open a directory, and needs no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
