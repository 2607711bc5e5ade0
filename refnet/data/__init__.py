"""Datasets: toy shapes, COCO files, how to write them, and batches of them for training.

dataset.py    Sample, and what a Dataset is         streams.py    random numbers by seed, purpose and position
shapes.py     images of shapes, made on demand      coco.py       anybody's COCO instances file
write.py      any dataset as PNG and JSON files     rle.py        run-length encodings and polygons, checked
loader.py     shuffled, mirrored, loaded ahead
"""

from refnet.data.coco import CocoDataset
from refnet.data.dataset import Dataset, Sample
from refnet.data.loader import batches
from refnet.data.shapes import SILHOUETTES, Shapes, ShapesConfig
from refnet.data.streams import stream
from refnet.data.write import write_coco, write_shapes

__all__ = [
    "SILHOUETTES",
    "CocoDataset",
    "Dataset",
    "Sample",
    "Shapes",
    "ShapesConfig",
    "batches",
    "stream",
    "write_coco",
    "write_shapes",
]
