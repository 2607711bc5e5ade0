"""Train Mask R-CNN on toy shapes, in a dozen lines that show what `refnet train shapes` does.

python examples/train_on_shapes.py             # 200 steps: a first impression within a few minutes
python examples/train_on_shapes.py --steps 4   # only to see that it runs
"""

import argparse

import numpy as np

import refnet.kernels
from refnet.data import Shapes, batches
from refnet.nn import SGD, clip_gradients, schedules
from refnet.rcnn import MaskRCNN
from refnet.rcnn.presets import shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()

    refnet.kernels.install()  # without this line the specification itself runs: the same numbers, slower
    dataset = Shapes(count=10_000, seed=0)
    model = MaskRCNN(shapes(), rng=np.random.default_rng(0))
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    rate = schedules.product(schedules.warmup(20), schedules.cosine(arguments.steps))

    for step, samples in batches(dataset, batch_size=arguments.batch_size, seed=0):
        if step == arguments.steps:
            break
        images, truth = [sample.image for sample in samples], [sample.truth for sample in samples]
        losses = model.losses(images, truth, rng=np.random.default_rng((0, step)))
        losses.total.backward()
        clip_gradients(model.parameters(), max_norm=5.0)
        optimizer.step(0.02 * rate(step))
        model.zero_grad()
        if step % 10 == 0 or step == arguments.steps - 1:
            print(f"step {step:4}  " + "  ".join(f"{name} {value:.3f}" for name, value in losses.as_dict().items()))

    unseen = Shapes(count=1, seed=0, split="val")[0]
    found = model.detect([unseen.image])[0]
    print(
        f"an unseen image has {len(unseen.truth)} shapes; found {int((found.scores > 0.5).sum())} with a score above 0.5"
    )


if __name__ == "__main__":
    main()
