"""Weights: files of any known format, in the names and layouts of several programs, without a framework.

files.py     any format to and from arrays     names.py     who calls what how      layouts.py   axes and channels
load.py      into a network, with a report     infer.py     which network it is     save.py      for other programs
Formats: torch_file.py, torch_writer.py, pickle_file.py (over pickle_machine.py, pickle_numpy.py), safetensors_file.py,
npz_file.py (over archive.py), hdf5_file.py; declared.py checks what they say of themselves.
"""

from refnet.weights.files import read_tensors, write_tensors
from refnet.weights.infer import Inferred, model_for
from refnet.weights.load import LoadReport, load
from refnet.weights.save import save

__all__ = ["Inferred", "LoadReport", "load", "model_for", "read_tensors", "save", "write_tensors"]
