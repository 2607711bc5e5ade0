"""The gradient of an operation, against central differences: roi_align with respect to the features and to the boxes.

python examples/gradient_of_an_op.py
"""

import numpy as np

from refnet.autograd import Tensor
from refnet.ops import mean, roi_align
from refnet.testing import check_gradients


def main() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1, 12, 16, 3))  # N H W C
    boxes = np.array([[1.3, 2.2, 9.7, 10.9], [4.1, 0.6, 14.8, 7.3]])  # x1 y1 x2 y2, in pixels
    images = np.zeros(2, np.int64)  # the image that each box lies in

    def pool(features: Tensor, boxes: Tensor) -> Tensor:
        return roi_align(features, boxes, images, size=(4, 4), spatial_scale=1.0, sampling_ratio=2, aligned=True)

    # a leaf that requires gradients gets one from backward
    f, b = Tensor(features, requires_grad=True), Tensor(boxes, requires_grad=True)
    mean(pool(f, b) ** 2).backward()
    print("d mean(pool^2) / d features:", f.grad.shape, "norm", f"{np.linalg.norm(f.grad):.6f}")
    print("d mean(pool^2) / d boxes, a row a box:")
    print(b.grad)

    # raises GradientError if either gradient is off by more than 1e-6
    check_gradients(pool, features, boxes, rng=rng)
    print("both equal central differences")


if __name__ == "__main__":
    main()
