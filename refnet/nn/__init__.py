"""Networks from operations: modules, layers, initialisers, optimisers and schedules.

Schedules and initialisers are called by their module's name, which says what ``constant`` is::

    from refnet.nn import Conv2d, Module, SGD, init, schedules
"""

from refnet.nn import init, schedules
from refnet.nn.init import Initializer
from refnet.nn.layers import BatchNorm2d, Conv2d, ConvTranspose2d, FrozenBatchNorm2d, Linear
from refnet.nn.module import Module, Parameter
from refnet.nn.optim import (
    SGD,
    AdamW,
    GradientNorms,
    NonFiniteError,
    Optimizer,
    add_weight_decay,
    clip_gradients,
    decay_gradients,
    find_nonfinite,
    measure_gradients,
    shorten_gradients,
)
from refnet.nn.schedules import Schedule
from refnet.nn.select import match_names, set_trainable

__all__ = [
    "SGD",
    "AdamW",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "FrozenBatchNorm2d",
    "GradientNorms",
    "Initializer",
    "Linear",
    "Module",
    "NonFiniteError",
    "Optimizer",
    "Parameter",
    "Schedule",
    "add_weight_decay",
    "clip_gradients",
    "decay_gradients",
    "find_nonfinite",
    "init",
    "match_names",
    "measure_gradients",
    "schedules",
    "set_trainable",
    "shorten_gradients",
]
