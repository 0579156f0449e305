"""Drop-in replacement of `segment_anything.SamAutomaticMaskGenerator`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torchvision.ops import box_convert

from proposal_cache import rle
from proposal_cache.generators.sam.generator import SamGenerator, SamParameters

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class SamAutomaticMaskGenerator:
    """Generator of the records of `segment_anything.SamAutomaticMaskGenerator`, faster and with less memory.

    To use it, change the import:

    >>> from proposal_cache import SamAutomaticMaskGenerator  # from segment_anything import ...
    >>> generator = SamAutomaticMaskGenerator(sam, points_per_side=4, pred_iou_thresh=0.5, stability_score_thresh=0.5)
    >>> records = generator.generate(image)  # (H, W, 3) uint8 RGB
    >>> sorted(records[0])
    ['area', 'bbox', 'crop_box', 'point_coords', 'predicted_iou', 'segmentation', 'stability_score']

    Args:
        model: a model of `segment_anything`, on its device.
        points_per_side, point_grids: prompts; exactly one must be None. `point_grids` has one array (P, 2) per layer of
            crops, XY relative to the crop.
        points_per_batch: accepted for compatibility; batches follow from the memory budget of `SamGenerator`.
        pred_iou_thresh, stability_score_thresh, stability_score_offset, box_nms_thresh, crop_n_layers, crop_nms_thresh,
        crop_overlap_ratio, crop_n_points_downscale_factor, min_mask_region_area: see `SamParameters`.
        output_mode: form of `segmentation`: binary_mask, uncompressed_rle or coco_rle.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[NDArray[np.float64]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("exactly one of points_per_side and point_grids must be None")
        if point_grids is not None and len(point_grids) <= crop_n_layers:
            raise ValueError(f"point_grids has {len(point_grids)} layers, crop_n_layers {crop_n_layers} needs one more")
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode is '{output_mode}', must be one of {', '.join(OUTPUT_MODES)}")
        parameters = SamParameters(
            points_per_side=points_per_side or crop_n_points_downscale_factor**crop_n_layers,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_n_layers=crop_n_layers,
            crop_nms_thresh=crop_nms_thresh,
            crop_overlap_ratio=crop_overlap_ratio,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
            min_mask_region_area=min_mask_region_area,
        )
        self.point_grids = point_grids
        self.output_mode = output_mode
        self._generator = SamGenerator(model, parameters)

    def generate(self, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Return one record per mask of an image (H, W, 3) uint8 RGB, in the order of `segment_anything`.

        Boxes are [x, y, width, height] from the first to the last pixel, one less than their number.
        """
        masks = self._generator.search(image, self.point_grids)
        height, width = image.shape[:2]
        areas = rle.area(masks.counts, height, width)
        boxes = box_convert(masks.scores.boxes, "xyxy", "xywh").tolist()
        crop_boxes = box_convert(masks.crop_boxes, "xyxy", "xywh").tolist()
        return [
            {
                "segmentation": self._segmentation(counts, height, width),
                "area": int(areas[i]),
                "bbox": boxes[i],
                "predicted_iou": masks.scores.predicted_iou[i].item(),
                "point_coords": [masks.points[i].tolist()],
                "stability_score": masks.scores.stability[i].item(),
                "crop_box": crop_boxes[i],
            }
            for i, counts in enumerate(masks.counts)
        ]

    def _segmentation(self, counts: bytes, height: int, width: int) -> Any:
        if self.output_mode == "coco_rle":
            return rle.to_json(counts, height, width)
        if self.output_mode == "binary_mask":
            return rle.decode([counts], height, width)[0]
        ends = rle.decode_runs([counts], height, width).ends
        return {"size": [height, width], "counts": np.diff(ends, prepend=0).tolist()}
