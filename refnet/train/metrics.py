"""metrics.jsonl: one line of JSON a step."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from refnet.errors import DataError

TIMING = ("images_per_second", "seconds", "peak_memory_mib")
"""The entries of a line that differ between equal runs; all others are equal, bit for bit."""


class MetricsLog:
    """The file, open at the line behind that of step `after`, whatever stood there before.

    Args:
        path: the file; created if it isn't there.
        after: steps up to this one keep their lines. A run that was killed may have written lines beyond its last
            checkpoint, the last of them torn; resumed, it computes these steps again.
    """

    def __init__(self, path: Path, *, after: int = 0) -> None:
        lines = []
        if after and path.exists():
            complete = (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
            lines = [line for line in complete if json.loads(line)["step"] <= after]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(lines))
        os.replace(partial, path)
        self._file = path.open("a")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, entries: Mapping[str, Any]) -> None:
        """Append a line, visible to readers at once."""
        self._file.write(json.dumps(entries, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make all lines durable; a checkpoint is only written after its steps' lines are."""
        os.fsync(self._file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, in order.

    Raises:
        DataError: there is no such file, or a line isn't JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"metrics: {path} can't be read: {error}") from error
