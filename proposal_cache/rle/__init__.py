"""Operations on masks in COCO's compressed run-length encoding, without decoding them to pixels.

A mask is its compressed counts (`bytes`, as pycocotools returns them). All functions take many masks of one image at
once and raise `MaskError` for counts that do not describe a mask of that image size: pycocotools does not check them
and may crash.
"""

from proposal_cache.rle.coco import from_json, shown, to_coco, to_json
from proposal_cache.rle.codec import MAX_PIXELS, IntArray, Intervals, Runs, check, decode_runs, foreground
from proposal_cache.rle.ops import (
    area,
    area_and_box,
    box,
    contains,
    crop,
    encode_labels,
    flip,
    iop,
    iou,
    paste,
    union,
)

__all__ = [
    "MAX_PIXELS",
    "IntArray",
    "Intervals",
    "Runs",
    "area",
    "area_and_box",
    "box",
    "check",
    "contains",
    "crop",
    "decode_runs",
    "encode_labels",
    "flip",
    "foreground",
    "from_json",
    "iop",
    "iou",
    "paste",
    "shown",
    "to_coco",
    "to_json",
    "union",
]
