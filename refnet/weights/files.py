"""Files of weights of any known format, told apart by what they hold and never by what they are called."""

import os
from collections.abc import Mapping
from pathlib import Path

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights import (
    archive,
    hdf5_file,
    npz_file,
    pickle_file,
    safetensors_file,
    torch_file,
    torch_writer,
)
from refnet.weights.declared import opened

_HEAD = 2048  # bytes that tell formats apart: the name of an archive's first member is among them


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a file, with the names and memory layouts of the framework that wrote it.

    Known are PyTorch's ``.pth`` (the archive, and the stream and the tar archive before it), Detectron's ``.pkl``, safetensors, NumPy's
    ``.npz`` and Keras's ``.h5``. Nothing in the file is run, and no more than twice its size and some 64 MiB are
    allocated, whatever it says.

    Raises:
        WeightsError: the file is missing, of another format, damaged, or not what its format allows.
    """
    file = Path(path)
    with opened(file) as opening:
        head = opening.read(_HEAD)
    if hdf5_file.is_hdf5(head):
        return hdf5_file.read(file)
    if torch_file.is_torch_file(head):
        return torch_file.read(file)
    if archive.is_zip(head):
        return npz_file.read(file)
    if safetensors_file.is_safetensors(head):  # asked before pickles: the header's length may look like their start
        return safetensors_file.read(file)
    if pickle_file.is_pickle(head):
        return pickle_file.read(file)
    raise WeightsError(
        f"weights {file}: expected .pth, .pkl, .safetensors, .npz or Keras's .h5, got one that begins with {head[:8]!r}"
    )


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Array]) -> None:
    """Write tensors in the format that the file's suffix names: ``.safetensors``, ``.npz``, ``.pth`` or Keras's ``.h5``.

    The file appears whole or not at all, and equal tensors make equal bytes.

    Raises:
        WeightsError: the suffix names no format, or the format can't hold one of the tensors.
        OSError: the file can't be written.
    """
    file = Path(path)
    writers = {
        ".safetensors": safetensors_file.write,
        ".npz": npz_file.write,
        ".pth": torch_writer.write,
        ".h5": hdf5_file.write,
    }
    if file.suffix not in writers:
        raise WeightsError(f"weights {file}: expected a suffix of {', '.join(writers)}, got {file.suffix!r}")
    writers[file.suffix](file, tensors)
