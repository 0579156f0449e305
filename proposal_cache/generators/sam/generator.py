"""Segment-everything with SAM: a grid of points over the image, three masks a point, the good and different ones kept.

The same masks as `segment_anything.SamAutomaticMaskGenerator` with the same weights and parameters, many times faster
and in a fraction of the memory, because work is done only where its result is needed:

- image encoder: global attention some rows at a time (`encoder`);
- mask decoder: what prompts share is computed once, and masks are made only for prompts whose predicted IoU passes,
  and only where the image is (`decoder`);
- stability and boxes: computed on the parts of the image where a mask's boundary may be (`masks`);
- run-length encoding: for winners of the non-maximum suppression (`search`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_all_layer_point_grids,
    generate_crop_boxes,
    remove_small_regions,
)
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import box_area

from proposal_cache.generators.base import require_rgb
from proposal_cache.generators.sam.checkpoint import load_sam
from proposal_cache.generators.sam.decoder import PromptDecoder
from proposal_cache.generators.sam.encoder import encode_image
from proposal_cache.generators.sam.masks import MaskEnlarger
from proposal_cache.generators.sam.search import Candidates, CropSearch, Thresholds, suppress
from proposal_cache.patches import Patches

CPU_MEMORY_BUDGET = 32 << 20  # about a processor's cache: larger batches would only be slower
GPU_MEMORY_BUDGET = 1 << 30
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class SamParameters:
    """What to search for: names and meaning of `segment_anything.SamAutomaticMaskGenerator`, the paper's values (B.1).

    Attributes:
        points_per_side: prompts are points_per_side² points.
        pred_iou_thresh: masks whose quality SAM predicts to be no higher are dropped; 0 keeps all.
        stability_score_thresh: masks that change more than this when the cut through their logits moves are dropped;
            0 keeps all.
        stability_score_offset: by how much that cut moves, up and down.
        box_nms_thresh: of two masks whose boxes' IoU is above this, the one of lower predicted IoU is dropped.
        crop_n_layers: layers of crops to search beside the whole image; layer i has (2^i)² crops.
        crop_nms_thresh: as box_nms_thresh, between crops; masks of smaller crops win.
        crop_overlap_ratio: overlap of the first layer's crops, as a share of the image's short side.
        crop_n_points_downscale_factor: in layer i, points_per_side is divided by this to the power of i.
        min_mask_region_area: holes and islands of fewer pixels are removed from the masks, and of masks that become
            alike in this way one is kept; 0 leaves them as they are.
    """

    points_per_side: int = 48
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.9
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0

    def __post_init__(self) -> None:
        if self.points_per_side < 1:
            raise ValueError(f"points_per_side is {self.points_per_side}, must be at least 1")
        if self.stability_score_offset < 0:
            raise ValueError(f"stability_score_offset is {self.stability_score_offset}, must not be negative")
        layers, factor = self.crop_n_layers, self.crop_n_points_downscale_factor
        if layers < 0 or factor < 1:
            raise ValueError(
                f"crop_n_layers is {layers}, crop_n_points_downscale_factor {factor}; must be at least 0 and 1"
            )
        if self.points_per_side < factor**layers:
            raise ValueError(
                f"no point is left for the smallest crops: points_per_side {self.points_per_side} / {factor}^{layers}; "
                "take more points, fewer layers, or a smaller crop_n_points_downscale_factor"
            )


class SamGenerator:
    """Patches of an image by SAM, prompted with a regular grid of points.

    Args:
        sam: a model of `segment_anything`, on the device to work on.
        parameters: what to search for.
        dtype: float32; or bfloat16 or float16, meant for a GPU, for the matrix products of the image encoder, the
            largest part of the work. All else stays in float32. The mask decoder's predicted IoU and logits decide
            which patches there are, and its layer norms, computed from sums of products (`tokens`), need the
            digits; its upscaling alone in bfloat16 costs the tests' models as much agreement as all of the encoder.
        compile: run encoder and decoder through `torch.compile`.
        memory_budget: bytes that one step of work may take beside the model; by default what suits the device.
        model_type: what to call the model in `describe`.
        weights_sha256: digest of its weights' file in `describe`.
    """

    def __init__(
        self,
        sam: Sam,
        parameters: SamParameters | None = None,
        *,
        dtype: str = "float32",
        compile: bool = False,
        memory_budget: int | None = None,
        model_type: str = "custom",
        weights_sha256: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is '{dtype}', must be one of {', '.join(DTYPES)}")
        self.sam = sam.eval()
        self.parameters = parameters or SamParameters()
        self.dtype = dtype
        self.memory_budget = memory_budget or (CPU_MEMORY_BUDGET if sam.device.type == "cpu" else GPU_MEMORY_BUDGET)
        self.model_type = model_type
        self.weights_sha256 = weights_sha256
        self.decoder = PromptDecoder(sam)
        self._encode_image = encode_image
        if compile:
            self.decoder.compile()
            self._encode_image = torch.compile(encode_image)

    @classmethod
    def from_checkpoint(
        cls,
        model_type: str,
        checkpoint: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        compile: bool = False,
        memory_budget: int | None = None,
        **parameters: Any,
    ) -> "SamGenerator":
        """A generator with the weights of a file; `parameters` are those of `SamParameters`.

        >>> SamGenerator.from_checkpoint("vit_h", "sam_vit_h_4b8939.pth", points_per_side=32)  # doctest: +SKIP

        Raises:
            CheckpointError: if there is no such file, or none of this model type.
        """
        search = SamParameters(**parameters)
        sam, digest = load_sam(model_type, checkpoint)
        return cls(
            sam.to(device),
            search,
            dtype=dtype,
            compile=compile,
            memory_budget=memory_budget,
            model_type=model_type,
            weights_sha256=digest,
        )

    def describe(self) -> dict[str, Any]:
        """Everything that decides which patches come out, for the cache's manifest."""
        return {
            "name": "sam",
            "model_type": self.model_type,
            "weights_sha256": self.weights_sha256,
            "dtype": self.dtype,
            **asdict(self.parameters),
        }

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """Patches of an RGB image (H, W, 3) uint8, in the order of the original: best predicted IoU first in a crop."""
        require_rgb(image)
        height, width = image.shape[:2]
        crop_boxes, layers = generate_crop_boxes(
            (height, width), self.parameters.crop_n_layers, self.parameters.crop_overlap_ratio
        )
        crops = [self._search(image, box, layer) for box, layer in zip(crop_boxes, layers, strict=True)]
        masks = Candidates.concatenate([masks for masks, _ in crops])
        counts = [one for _, crop_counts in crops for one in crop_counts]
        if len(crops) > 1:
            prefer_small = 1 / box_area(torch.tensor(crop_boxes))
            crop_of = torch.repeat_interleave(torch.tensor([len(crop_masks) for crop_masks, _ in crops]))
            keep = suppress(masks.boxes, prefer_small[crop_of], self.parameters.crop_nms_thresh)
            masks, counts = masks.select(keep), [counts[i] for i in keep.tolist()]
        if self.parameters.min_mask_region_area > 0:
            counts, boxes, changed = _tidy(counts, (height, width), self.parameters.min_mask_region_area)
            threshold = max(self.parameters.box_nms_thresh, self.parameters.crop_nms_thresh)
            keep = suppress(boxes, (~changed).float(), threshold)  # of masks alike, rather one that needed no change
            masks, counts = masks.select(keep), [counts[i] for i in keep.tolist()]
        return Patches.from_rles(
            height,
            width,
            counts,
            predicted_iou=masks.predicted_iou.numpy(),
            stability_score=masks.stability.numpy(),
        )

    def _search(self, image: NDArray[np.uint8], crop_box: list[int], layer: int) -> tuple[Candidates, list[bytes]]:
        """Masks of one crop, boxes in the image's frame, with their encoded counts."""
        left, top, right, bottom = crop_box
        crop = image[top:bottom, left:right]
        size = (bottom - top, right - left)
        resize = ResizeLongestSide(self.sam.image_encoder.img_size)
        resized = resize.apply_image(crop)
        grids = build_all_layer_point_grids(
            self.parameters.points_per_side,
            self.parameters.crop_n_layers,
            self.parameters.crop_n_points_downscale_factor,
        )
        points = resize.apply_coords(grids[layer] * np.array(size)[::-1], size)
        enlarger = MaskEnlarger(
            self.decoder.mask_size,
            self.sam.image_encoder.img_size,
            (resized.shape[0], resized.shape[1]),
            size,
            threshold=self.sam.mask_threshold,
            memory_budget=self.memory_budget,
            device=self.sam.device,
        )
        search = CropSearch(
            self.decoder,
            self.decoder.tables(self._embed(resized), enlarger.logits_size),
            torch.as_tensor(points, device=self.sam.device),
            enlarger,
            crop_box=crop_box,
            image_size=(image.shape[0], image.shape[1]),
            thresholds=Thresholds(
                predicted_iou=self.parameters.pred_iou_thresh,
                stability=self.parameters.stability_score_thresh,
                stability_offset=self.parameters.stability_score_offset,
                box_nms=self.parameters.box_nms_thresh,
            ),
            batch=max(1, self.memory_budget // self.decoder.bytes_per_prompt),
        )
        masks, counts = search.run()
        return masks.moved(left, top), counts

    def _embed(self, resized: NDArray[np.uint8]) -> Tensor:
        """Image embedding (1, C, H/16, W/16) float32 of an image whose long side is the encoder's image size."""
        pixels = torch.as_tensor(resized, device=self.sam.device).permute(2, 0, 1)[None]
        with torch.autocast(self.sam.device.type, DTYPES[self.dtype], enabled=self.dtype != "float32"):
            embedding = self._encode_image(self.sam.image_encoder, self.sam.preprocess(pixels), self.memory_budget)
        return embedding.float()


def _tidy(counts: list[bytes], size: tuple[int, int], min_area: int) -> tuple[list[bytes], Tensor, Tensor]:
    """Encoded masks of an image (height, width) without holes and islands of less than min_area pixels.

    Returns:
        their counts; boxes (n, 4) int64 XYXY, last pixel included; and (n,) bool, which ones are changed.
    """
    tidied, boxes, changed = [], torch.zeros((len(counts), 4), dtype=torch.int64), []
    for i, one in enumerate(counts):
        mask = coco.decode({"size": list(size), "counts": one}).astype(bool)
        mask, filled = remove_small_regions(mask, min_area, mode="holes")
        mask, cleared = remove_small_regions(mask, min_area, mode="islands")
        boxes[i] = batched_mask_to_box(torch.from_numpy(mask))
        changed.append(filled or cleared)
        tidied.append(coco.encode(np.asfortranarray(mask, np.uint8))["counts"] if changed[-1] else one)
    return tidied, boxes, torch.tensor(changed, dtype=torch.bool)
