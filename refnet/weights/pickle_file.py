"""Detectron2's and Caffe2's ``.pkl`` files: a pickled dict of NumPy arrays by name, read without executing anything.

Detectron2 keeps the arrays under ``model``, Detectron (Caffe2) under ``blobs``, beside its configuration as text;
the files of Detectron were written by Python 2, whose strings are read as Latin-1.
"""

import os
from pathlib import Path

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights.declared import about, opened
from refnet.weights.pickle_machine import PROTOCOLS, Allowance, PickleMachine, describe, stubs
from refnet.weights.pickle_numpy import NUMPY_STUBS, NumpyArray, check_total, unwrapped

_WRAPPERS = ("model", "blobs")
_OPTIMISER = "_momentum"  # the ending of the names of Detectron's optimiser state
_TABLE = stubs(*NUMPY_STUBS)


def is_pickle(head: bytes) -> bool:
    """Whether a file that starts with `head` is a pickle of protocol 2 to 5.

    torch's older files are such pickles too: ask :func:`refnet.weights.torch_file.is_torch_file` first.
    """
    return len(head) >= 2 and head[0] == 0x80 and head[1] in PROTOCOLS


def read(path: Path) -> dict[str, Array]:
    """The arrays of a ``.pkl`` file by their names in it, read-only. Names that end in ``_momentum`` are left out.

    Raises:
        WeightsError: there is no such file, it is damaged, or it holds anything else than data and plain arrays.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        root = PickleMachine(file, end=size, what="pickle", table=_TABLE, allowance=Allowance(size)).run()
        if file.tell() != size:
            raise WeightsError(f"expected the end of the file, got {size - file.tell()} bytes more")
        stored: dict[str, NumpyArray] = {}
        for name, value in unwrapped(root, _WRAPPERS).items():
            if name.endswith(_OPTIMISER):
                continue
            if not isinstance(value, NumpyArray):
                raise WeightsError(f"{describe(name)}: expected an array, got {describe(value)}")
            stored[name] = value
        check_total((value.nbytes for value in stored.values()), size)
        arrays = {}
        for name, value in stored.items():
            with about(f"array {describe(name)}"):
                arrays[name] = value.array()
        return arrays
