"""Every stage of Mask R-CNN on one image, with the shapes of what it hands on: the diagram of refnet.rcnn, executed.

python examples/trace_the_pipeline.py
"""

from collections.abc import Sequence

import numpy as np

import refnet.kernels
from refnet.autograd import Tensor
from refnet.data import Shapes, ShapesConfig
from refnet.rcnn import MaskRCNN
from refnet.rcnn.losses import add_losses, box_losses, mask_loss, rpn_losses
from refnet.rcnn.presets import shapes
from refnet.rcnn.proposals import propose
from refnet.rcnn.roi_pool import assign_levels, pool_rois
from refnet.rcnn.targets import assign_anchors, sample_rois
from refnet.rcnn.transform import prepare_truth


def show(stage: str, **values: object) -> None:
    print(f"\n{stage}")
    for name, value in values.items():
        print(f"  {name:26}{describe(value)}")


def describe(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        kind = "Tensor" if isinstance(value, Tensor) else "array "
        return f"{kind} {value.dtype!s:8}{'x'.join(str(n) for n in value.shape) or 'scalar'}"
    if isinstance(value, Sequence) and value and not isinstance(value, str):
        return "\n".join(describe(entry) if i == 0 else " " * 28 + describe(entry) for i, entry in enumerate(value))
    return str(value)


def main() -> None:
    refnet.kernels.install()
    config = shapes()
    rng = np.random.default_rng(0)
    model = MaskRCNN(config, rng=rng)
    samples = [Shapes(ShapesConfig(), count=2, seed=0)[i] for i in range(2)]
    print(f"Mask R-CNN, preset shapes: {model.count():,} parameters")

    batch = model.prepare([sample.image for sample in samples])
    truth = prepare_truth([sample.truth for sample in samples], batch, config.input)
    show("transform: images", pixels=batch.pixels, windows=batch.windows)
    show("transform: ground truth of image 0", boxes=truth[0].boxes, classes=truth[0].classes, masks=truth[0].masks)

    features = model.backbone(Tensor(batch.pixels), training=True)
    show("resnet: C2 to C5", features=features)
    pyramid = model.fpn(features, training=True)
    show("fpn: P2 to P6", pyramid=pyramid)
    rpn = model.rpn(pyramid)
    show("rpn: per level", objectness_logits=rpn.objectness_logits, deltas=rpn.deltas)
    anchors = model.anchors(pyramid, batch)
    show("anchors: per level", boxes=anchors)
    proposals = propose(rpn, anchors, batch, config.rpn, training=True)
    show("proposals: per image", boxes=[p.boxes for p in proposals], scores=[p.scores for p in proposals])

    targets = assign_anchors(np.concatenate(anchors), truth, batch, config.anchor_targets, config.rpn.delta_std, rng)
    show(
        "targets: anchors",
        labels=targets.labels,
        deltas=targets.deltas,
        objects=int((targets.labels == 1).sum()),
        background=int((targets.labels == 0).sum()),
        ignored=int((targets.labels == -1).sum()),
    )
    rois = sample_rois(
        proposals, truth, batch, config.roi_targets, config.box_head.delta_std, 2 * config.mask_pool.size, rng
    )
    show(
        "targets: regions",
        boxes=rois.boxes,
        images=rois.images,
        classes=rois.classes,
        deltas=rois.deltas,
        foreground=rois.foreground,
        masks=rois.masks,
    )
    levels = assign_levels(rois.boxes, batch.size, config.box_pool)
    pooled = pool_rois(pyramid, rois.boxes, rois.images, batch.size, config.box_pool)
    show(
        "roi pooling for boxes",
        pooled=pooled,
        regions_per_level={f"P{level}": int((levels == level).sum()) for level in range(2, 6)},
    )
    box = model.box_head(pooled, training=True)
    show("box head", class_logits=box.class_logits, deltas=box.deltas)
    boxes, images = rois.boxes[rois.foreground], rois.images[rois.foreground]
    pooled = pool_rois(pyramid, boxes, images, batch.size, config.mask_pool)
    logits = model.mask_head(pooled, training=True)
    show("mask head", pooled=pooled, mask_logits=logits)

    losses = add_losses(
        rpn_losses(rpn, targets, config.losses),
        box_losses(box, rois, config.losses, config.box_head),
        mask_loss(logits, rois, rois.masks, config.losses, config.box_head, config.mask_head),
        None,  # no keypoints
        config.losses,
    )
    show("losses", **{name: f"{value:.4f}" for name, value in losses.as_dict().items()})
    losses.total.backward()
    graded = sum(parameter.grad is not None for parameter in model.parameters().values())
    show("backward", parameters_with_gradient=f"{graded} of {len(model.parameters())}")

    found = model.detect([sample.image for sample in samples])
    show(
        "detections of image 0 (untrained)",
        boxes=found[0].boxes,
        classes=found[0].classes,
        scores=found[0].scores,
        masks=found[0].masks,
    )


if __name__ == "__main__":
    main()
