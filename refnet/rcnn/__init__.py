"""Mask R-CNN, one file for each box of the diagram. Stages don't import one another; model.py joins them.

::

    images ─ transform.py ─→ (N, H, W, C), resized, normalised, padded to one size
       │
    resnet.py      C2 C3 C4 C5, strides 4 8 16 32           He et al. 2016, table 1
    or vgg.py                                               Simonyan and Zisserman 2015, table 1
       │
    fpn.py         P2 P3 P4 P5 P6, all of one width         Lin et al. 2017, section 3
       │ ├──────────────────────────────┐
    rpn.py         objectness_logits,   │                   Ren et al. 2015, section 3.1
       │           deltas  ←── anchors.py                   Ren et al. 2015, section 3.1.1
    proposals.py   decoded, clipped, thinned out by NMS     Ren et al. 2015, section 3.3
       │                                │
    targets.py     (training) sampled regions, and what     Ren et al. 2015, section 3.1.2
       │           anchors and regions should say           Girshick 2015, section 2.3
       │           (attached_targets.py: as the same function of the RPN's deltas, for gradients)
    roi_pool.py ←───────────────────────┘                   Lin et al. 2017, eq. 1
       │           (R, P, P, C) from each region's level    He et al. 2017, section 3, RoIAlign
    heads.py       class_logits, deltas, mask_logits,       Lin et al. 2017, 4.2; He et al. 2017, figure 4
       │           keypoint maps                            He et al. 2017, section 5
       ├─ losses.py      (training) one loss an output      He et al. 2017, sections 3 and 5
       └─ detections.py  (inference) boxes, classes,        He et al. 2017, sections 3.1 and 5
                         scores, masks, keypoints

    config.py      every convention as a field      presets.py   torchvision(), torchvision_v2(), matterport(),
                                                                 detectron2(), paper(), shapes()
    structures.py  the records between stages       layers.py    initialisers, norms, layer names
    boxes.py       geometry of boxes                masks.py     geometry of masks
    trace.py       every intermediate, by name
    matterport.py, attached_targets.py              what only Matterport's convention has: image meta data, signs of
                                                    crowds, random regions; box targets that aren't constants

Glossary of letters:

=====  ==================================  =====  ==================================
N      images of a batch                   R      regions (rois) of a batch
H, W   height, width                       F      regions with an object (foreground)
C      channels                            P, Q   rows, columns of pooled features
A      anchors                             S      side of a mask target, 2 P
G      ground-truth objects of an image    D      detections of an image
K      classes without background;         B      boxes in general
       of keypoints: points of an object
=====  ==================================  =====  ==================================

Glossary of names:

===================  =========================================================================================
box                  (x1, y1, x2, y2), continuous pixels of the network's input; pixel i covers [i, i + 1)
level, stride        P2 to P6; pixels of the input for one step on that level: 4, 8, 16, 32, 64
anchors              reference boxes at every position of every level
deltas               offset of a box from its anchor or region: (dx, dy, dw, dh) / delta_std
objectness_logits    before sigmoid or softmax: is there an object at an anchor?
proposals            the RPN's best boxes after NMS
rois                 proposals sampled for training the heads
class_logits         before softmax: which class has a region?
mask_logits          before sigmoid: which pixels of a region belong to the object?
keypoint maps        before a softmax over each map: where in a region is each named point?
..._scores           probabilities
detections           the result: boxes, classes, scores, masks, keypoints
keypoints            named points of an object, each (x, y, visibility)
gt, truth            what people drew: boxes, classes, masks, keypoints, crowd flags
trace                every intermediate of a pass by name: backbone.c4, rpn.deltas.p3, losses.box
labels               1 object, 0 background, -1 takes no part
iou                  intersection over union
extent               whether a box is x2 - x1 wide (continuous), x2 - x1 + 1 (inclusive) or - 1 (normalized)
===================  =========================================================================================
"""

from refnet.rcnn.config import ModelConfig
from refnet.rcnn.losses import Losses
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.structures import Detections, GroundTruth

__all__ = ["Detections", "GroundTruth", "Losses", "MaskRCNN", "ModelConfig"]
