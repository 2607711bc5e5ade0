"""Pictures: objects in their image, curves, and the report of a run as one page.

pictures.py   boxes, masks and labels in an image     curves.py   losses, precision against recall
report.py     a run on one page                       page.py     the pieces of a page
machine.py    what the numbers were measured on
"""

from refnet.draw.curves import loss_curves, png_bytes, precision_recall_curves
from refnet.draw.machine import machine_facts
from refnet.draw.pictures import draw_detections, draw_side_by_side
from refnet.draw.report import Example, write_report

__all__ = [
    "Example",
    "draw_detections",
    "draw_side_by_side",
    "loss_curves",
    "machine_facts",
    "png_bytes",
    "precision_recall_curves",
    "write_report",
]
