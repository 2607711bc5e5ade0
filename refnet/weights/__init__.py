"""Weights: files of any known format, in the names and layouts of several programs, without a framework.

files.py     any format to and from arrays     names.py     who calls what how      layouts.py   axes and channels
load.py      into a network, with a report     infer.py     which network it is     save.py      for other programs
"""

from refnet.weights.files import read_tensors, write_tensors
from refnet.weights.infer import Inferred, model_for
from refnet.weights.load import LoadReport, load
from refnet.weights.save import save

__all__ = ["Inferred", "LoadReport", "load", "model_for", "read_tensors", "save", "write_tensors"]
