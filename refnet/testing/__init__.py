"""The public test bench: properties that any differentiable function or kernel must have."""

from refnet.testing.gradients import check_gradients

__all__ = ["check_gradients"]
