"""Training: what makes a run, its loop, its checkpoints.

config.py        the network, the data and how one is trained on the other, as records
config_file.py   the same as TOML and JSON         checkpoint.py    the state of a run in one verified file
loop.py          one step after the other          metrics.py       a line a step
interrupt.py     Ctrl-C between two steps          memory.py        keep freed memory; the peak
run_dir.py       what the folder of a run holds    progress.py      a progress bar
source.py        weights from a run, a checkpoint or a file of another program
"""

from refnet.train.checkpoint import Checkpoint, load_checkpoint, load_newest, save_checkpoint, write_checkpoint
from refnet.train.config import CocoData, RunConfig, ShapesData, TrainConfig
from refnet.train.config_file import (
    as_toml,
    from_document,
    preset_model,
    read_config,
    read_toml,
    to_document,
    with_document,
)
from refnet.train.loop import TrainingResult, build_model, train
from refnet.train.memory import keep_freed_memory, peak_memory_mib
from refnet.train.metrics import read_metrics
from refnet.train.run_dir import delete_run, holds_run
from refnet.train.source import Source, open_source, read_weights

__all__ = [
    "Checkpoint",
    "CocoData",
    "RunConfig",
    "ShapesData",
    "Source",
    "TrainConfig",
    "TrainingResult",
    "as_toml",
    "build_model",
    "delete_run",
    "from_document",
    "holds_run",
    "keep_freed_memory",
    "load_checkpoint",
    "load_newest",
    "open_source",
    "peak_memory_mib",
    "preset_model",
    "read_config",
    "read_metrics",
    "read_toml",
    "read_weights",
    "save_checkpoint",
    "to_document",
    "train",
    "with_document",
    "write_checkpoint",
]
