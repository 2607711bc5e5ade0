"""The folder of a run: what it holds, and under which names."""

from pathlib import Path

CHECKPOINTS = "checkpoints"
"""Folder of the newest two checkpoints."""
METRICS = "metrics.jsonl"
"""A line for each step."""
CONFIG_TOML = "config.toml"
"""The configuration; ``refnet train ... --config`` repeats the run from it."""
CONFIG_JSON = "config.json"
"""The same as JSON."""
RESULTS = "results.json"
"""What the evaluation found."""
REPORT = "report.html"
"""Curves, results and pictures on one page."""


def holds_run(run_dir: Path) -> bool:
    """Whether `run_dir` holds anything that a run would write over."""
    return any((run_dir / name).exists() for name in (CHECKPOINTS, METRICS, CONFIG_TOML, CONFIG_JSON, RESULTS, REPORT))


def delete_run(run_dir: Path) -> None:
    """Delete the files of a run in `run_dir`, and nothing else that lies there."""
    for name in (CONFIG_TOML, CONFIG_JSON, METRICS, RESULTS, REPORT):
        (run_dir / name).unlink(missing_ok=True)
    folder = run_dir / CHECKPOINTS
    if folder.is_dir():
        for file in [*folder.glob("step-*.npz"), *folder.glob("*.partial")]:
            file.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
