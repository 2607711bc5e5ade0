"""A progress bar on standard error."""

import sys
from typing import Any


def progress_bar(*, total: int, unit: str, initial: int = 0, description: str | None = None, shown: bool = True) -> Any:
    """A ``tqdm`` bar with rate and time left; in a file or a pipe, where each update is text, only every 10 seconds."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        disable=not shown,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
