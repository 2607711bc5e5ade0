"""refnet: an executable specification of Faster, Mask and Keypoint R-CNN in NumPy, with swappable kernels.

The names most used, in the order of the data flow; each is imported from its home when it is first asked for, so
that a program can still settle how many threads NumPy gets.

>>> from refnet import MaskRCNN, presets
>>> model = MaskRCNN(presets.shapes(), rng=np.random.default_rng(0))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refnet import nn as nn
    from refnet import ops as ops
    from refnet.autograd import Tensor as Tensor
    from refnet.autograd import no_grad as no_grad
    from refnet.errors import RefnetError as RefnetError
    from refnet.kernel_op import kernel_op as kernel_op
    from refnet.rcnn import Detections as Detections
    from refnet.rcnn import GroundTruth as GroundTruth
    from refnet.rcnn import Losses as Losses
    from refnet.rcnn import MaskRCNN as MaskRCNN
    from refnet.rcnn import ModelConfig as ModelConfig
    from refnet.rcnn import presets as presets

__version__ = "0.1.0"

_HOMES = {
    "ops": "refnet",
    "nn": "refnet",
    "presets": "refnet.rcnn",
    "ModelConfig": "refnet.rcnn",
    "MaskRCNN": "refnet.rcnn",
    "GroundTruth": "refnet.rcnn",
    "Losses": "refnet.rcnn",
    "Detections": "refnet.rcnn",
    "Tensor": "refnet.autograd",
    "no_grad": "refnet.autograd",
    "kernel_op": "refnet.kernel_op",
    "RefnetError": "refnet.errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name from its home, once."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'refnet' has no attribute {name!r}")
    submodules = ("ops", "nn", "presets")
    value = import_module(f"{home}.{name}") if name in submodules else getattr(import_module(home), name)
    globals()[name] = value
    return value
