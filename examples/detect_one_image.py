"""Find the objects in one image with a trained network, and draw them.

python examples/detect_one_image.py runs/shapes                       # on a toy image that it hasn't seen
python examples/detect_one_image.py runs/shapes photo.png --out found.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import refnet.kernels
from refnet.data import Shapes
from refnet.draw import draw_detections
from refnet.train import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the folder of a run, such as runs/shapes")
    parser.add_argument("image", type=Path, nargs="?", help="an image file; a toy image without it")
    parser.add_argument("--out", type=Path, default=Path("detected.png"))
    arguments = parser.parse_args()

    refnet.kernels.install()
    source = open_source(arguments.run)
    model, _ = source.model()
    if arguments.image is None:
        image = Shapes(count=1, seed=1, split="val")[0].image
    else:
        image = np.asarray(Image.open(arguments.image).convert("RGB"))

    found = model.detect([image])[0]
    for box, label, score, mask in zip(found.boxes, found.classes, found.scores, found.masks, strict=True):
        corners = ", ".join(f"{value:.1f}" for value in box)
        print(f"{source.class_names[label - 1]:10} {score:.2f}  box ({corners})  mask of {int(mask.sum())} pixels")
    Image.fromarray(draw_detections(image, found, source.class_names)).save(arguments.out)
    print(f"drawn in {arguments.out}")


if __name__ == "__main__":
    main()
