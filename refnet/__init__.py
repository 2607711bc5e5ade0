"""refnet: an executable specification of Faster, Mask and Keypoint R-CNN in NumPy, with swappable kernels."""

__version__ = "0.1.0"
