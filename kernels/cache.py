"""Where compiled kernels are kept between runs, and how a file gets there."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """REFNET_CACHE, or refnet in the user's cache."""
    base = os.environ.get("REFNET_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refnet"


def write_shared(path: Path, data: bytes) -> None:
    """Write `data` to `path`, making its folder, while other processes may be writing the same file.

    Each writes a temporary file of its own and renames it, so a reader sees all of one of them. Unlike
    :func:`refnet.whole_file.whole_file` it doesn't outlive a loss of power; who reads the cache checks what he reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
