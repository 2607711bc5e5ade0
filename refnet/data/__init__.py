"""Datasets: toy shapes, COCO files, how to write them, and batches of them for training.

dataset.py    Sample, and what a Dataset is         streams.py    random numbers by seed, purpose and position
shapes.py     images of shapes, made on demand      coco.py       anybody's COCO instances file
write.py      any dataset as PNG and JSON files     rle.py        run-length encodings and polygons, checked
loader.py     shuffled, mirrored, loaded ahead      image_file.py pixels from files of any kind
"""

from refnet.data.coco import KEYPOINT_OFFSET, CocoDataset
from refnet.data.dataset import Dataset, KeypointScheme, Sample, keypoint_scheme
from refnet.data.image_file import read_image
from refnet.data.loader import batches
from refnet.data.shapes import SILHOUETTES, Shapes, ShapesConfig
from refnet.data.streams import stream
from refnet.data.write import write_coco, write_shapes

__all__ = [
    "KEYPOINT_OFFSET",
    "SILHOUETTES",
    "CocoDataset",
    "Dataset",
    "KeypointScheme",
    "Sample",
    "Shapes",
    "ShapesConfig",
    "batches",
    "keypoint_scheme",
    "read_image",
    "stream",
    "write_coco",
    "write_shapes",
]
