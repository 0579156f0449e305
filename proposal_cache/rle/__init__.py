"""Operations on masks in COCO's compressed run-length encoding, without decoding them to pixels.

A mask is its compressed counts (`bytes`, as pycocotools returns them). All functions take many masks of one image at
once and raise `MaskError` for counts that do not describe a mask of that image size: pycocotools does not check them
and may crash. The examples assume `import numpy as np` and `from proposal_cache import rle`.
"""

from proposal_cache.rle.coco import check_json, from_json, to_json
from proposal_cache.rle.codec import MAX_PIXELS, Runs, check, decode, decode_runs, encode, to_coco
from proposal_cache.rle.ops import area, area_and_box, contains, crop, encode_labels, iop, iou, paste, union

__all__ = [
    "MAX_PIXELS",
    "Runs",
    "area",
    "area_and_box",
    "check",
    "check_json",
    "contains",
    "crop",
    "decode",
    "decode_runs",
    "encode",
    "encode_labels",
    "from_json",
    "iop",
    "iou",
    "paste",
    "to_coco",
    "to_json",
    "union",
]
