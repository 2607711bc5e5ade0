"""How time and memory grow with pixels, images, regions and boxes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from refnet.bench import bars, memory, models, operations, training
from refnet.bench.contest import Curve, Subject
from refnet.bench.contestants import TORCHVISION
from refnet.bench.work import part


def curves(*, quick: bool) -> Iterator[Curve]:
    """Time of inference, of steps, of ROI pooling and of NMS; memory of inference and of steps."""
    sides = (64, 96) if quick else (256, 384, 512, 768)
    batches = (1, 2) if quick else (1, 2, 4)
    side = 64 if quick else 256
    against = {TORCHVISION: None}
    yield Curve(
        name="scaling: inference against pixels",
        along="pixels",
        points=tuple((s * s, Subject.of(models.inference(s, s, quick=quick), against)) for s in sides),
        bar=bars.EXPONENT,
    )
    yield Curve(
        name="scaling: training step against batch",
        along="images",
        points=tuple((n, Subject.of(training.step(side, side, n, quick=quick), against)) for n in batches),
        bar=bars.EXPONENT,
    )
    for both in (False, True):
        way = "forward + backward" if both else "forward"
        extents = (32, 8) if quick else (512, 256)
        yield Curve(
            name=f"scaling: roi_align {way} against ROIs",
            along="ROIs",
            points=tuple(
                (
                    n,
                    Subject.of(
                        part(
                            f"roi_align {n} {way}",
                            partial(operations.roi_align, 7, n, extents, both),
                            specification=False,
                        ),
                        against,
                    ),
                )
                for n in ((4, 8) if quick else (250, 500, 1000, 2000))
            ),
            bar=bars.EXPONENT,
        )
    yield Curve(
        name="scaling: nms against boxes",
        along="boxes",
        points=tuple(
            (n, Subject.of(part(f"nms {n}", partial(operations.nms, n, "clustered"), specification=False), against))
            for n in ((20, 40) if quick else (1500, 3000, 6000, 12000))
        ),
        bar=bars.EXPONENT_NMS,
    )
    yield Curve(
        name="scaling: memory of inference against pixels",
        along="pixels",
        points=tuple((s * s, memory.subject("inference", s, s, 1, above=True, quick=quick)) for s in sides),
        bar=bars.EXPONENT,
    )
    yield Curve(
        name="scaling: memory of a training step against batch",
        along="images",
        points=tuple((n, memory.subject("training", side, side, n, above=True, quick=quick)) for n in batches),
        bar=bars.EXPONENT,
    )
