"""Operations on masks in COCO's compressed run-length encoding, without decoding them to pixels.

A mask is its compressed counts (`bytes`, as pycocotools returns them). Functions on counts take many masks of one image
at once and raise `MaskError` for counts that do not describe a mask of that image size: pycocotools does not check them
and may crash. Those on `Intervals`, decoded runs, check nothing. The examples assume
`import numpy as np` and `from proposal_cache import rle`.
"""

from proposal_cache.rle.coco import check_json, from_json, to_json
from proposal_cache.rle.codec import (
    MAX_PIXELS,
    Intervals,
    Runs,
    check,
    decode,
    decode_intervals,
    decode_runs,
    encode,
    encode_intervals,
    select_intervals,
    to_coco,
)
from proposal_cache.rle.ops import (
    area,
    area_and_box,
    contains,
    crop,
    crop_intervals,
    encode_labels,
    iop,
    iou,
    measure,
    paste,
    union,
)

__all__ = [
    "MAX_PIXELS",
    "Intervals",
    "Runs",
    "area",
    "area_and_box",
    "check",
    "check_json",
    "contains",
    "crop",
    "crop_intervals",
    "decode",
    "decode_intervals",
    "decode_runs",
    "encode",
    "encode_intervals",
    "encode_labels",
    "from_json",
    "iop",
    "iou",
    "measure",
    "paste",
    "select_intervals",
    "to_coco",
    "to_json",
    "union",
]
