"""SAM's automatic mask generation, with the masks of `segment_anything.SamAutomaticMaskGenerator`.

Many times faster and with a fraction of its memory, because results that are not needed are not computed:

- image encoder: global attention is computed for some rows at a time (`encoder`);
- mask decoder: everything that prompts share is computed once; masks are computed only for prompts whose predicted IoU
  passes the threshold, and not for padding (`decoder`);
- stability and boxes: only tiles that can contain a boundary are upsampled (`masks`);
- run-length encoding: only masks that non-maximum suppression keeps are encoded (`search`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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

from proposal_cache import rle
from proposal_cache.generators.base import require_rgb
from proposal_cache.generators.memory import halving_batches
from proposal_cache.generators.sam.checkpoint import load_sam
from proposal_cache.generators.sam.decoder import PromptDecoder
from proposal_cache.generators.sam.encoder import encode_image
from proposal_cache.generators.sam.masks import MaskUpsampler
from proposal_cache.generators.sam.search import Candidates, CropSearch, SamParameters, suppress
from proposal_cache.patches import Patches

CPU_MEMORY_BUDGET = 32 << 20  # about the size of a CPU cache; larger batches are slower
GPU_MEMORY_BUDGET = 1 << 30
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class FoundMasks:
    """n masks of one image, in the order of `segment_anything`."""

    counts: list[bytes]  # COCO's compressed counts, at the size of the image
    scores: Candidates  # scores, and boxes in the image
    points: Tensor  # (n, 2) float64: the prompt of each mask, XY in the image
    crop_boxes: Tensor  # (n, 4) int64: the crop of each mask, XYXY in the image

    def select(self, index: Tensor) -> "FoundMasks":
        counts = [self.counts[i] for i in index.tolist()]
        return FoundMasks(counts, self.scores.select(index), self.points[index], self.crop_boxes[index])


class SamGenerator:
    """Generator of SAM's automatic masks, prompted with a regular grid of points.

    >>> generator = SamGenerator(sam, SamParameters(points_per_side=4, pred_iou_thresh=0.5))
    >>> patches = generator(image)  # (H, W, 3) uint8 RGB
    >>> patches.predicted_iou.min() > 0.5
    True

    Args:
        sam: a model of `segment_anything`, on its device.
        parameters: of the search.
        dtype: float32; or bfloat16 or float16, meant for GPUs, for the matrix products of the image encoder, which take
            most of the time. The mask decoder always runs in float32, because its layer norms are computed from sums
            of products (`tokens`), which need the precision.
        compile: run encoder and decoder with `torch.compile`.
        memory_budget: bytes per step of computation, in addition to the model; None for a default by device. Halved
            when memory runs out.
        model_type: name of the model in `describe`.
        weights_sha256: SHA-256 of the weights' file in `describe`.
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
        """Create a generator with the weights of a file; `parameters` are those of `SamParameters`.

        >>> SamGenerator.from_checkpoint("vit_h", "sam_vit_h_4b8939.pth", points_per_side=32)  # doctest: +SKIP

        Raises CheckpointError if the file is missing, damaged or of another model type.
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
        """Return everything that determines the patches, for the cache's manifest."""
        model = {"model_type": self.model_type, "weights_sha256": self.weights_sha256, "dtype": self.dtype}
        return {"name": "sam", **model, **asdict(self.parameters)}

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """Return the patches of an image (H, W, 3) uint8 RGB, by crop, then by descending predicted IoU."""
        masks = self.search(image)
        height, width = image.shape[:2]
        return Patches.from_rles(
            height,
            width,
            masks.counts,
            predicted_iou=masks.scores.predicted_iou.numpy(),
            stability_score=masks.scores.stability.numpy(),
        )

    @torch.inference_mode()
    def search(self, image: NDArray[np.uint8], point_grids: Sequence[NDArray[np.float64]] | None = None) -> FoundMasks:
        """Return the masks of an image (H, W, 3) uint8 RGB with their prompts and crops.

        `point_grids` has the prompts of each layer of crops, (P, 2) XY relative to the crop; None for regular grids.
        """
        require_rgb(image)
        parameters, (height, width) = self.parameters, image.shape[:2]
        grids = point_grids or build_all_layer_point_grids(
            parameters.points_per_side, parameters.crop_n_layers, parameters.crop_n_points_downscale_factor
        )
        boxes, layers = generate_crop_boxes((height, width), parameters.crop_n_layers, parameters.crop_overlap_ratio)
        crops = [
            halving_batches(partial(self._search_crop, image, box, grids[layer]), self._halve_budget)
            for box, layer in zip(boxes, layers, strict=True)
        ]
        masks = FoundMasks(
            [counts for crop in crops for counts in crop.counts],
            Candidates.concatenate([crop.scores for crop in crops]),
            torch.cat([crop.points for crop in crops]),
            torch.cat([crop.crop_boxes for crop in crops]),
        )
        if len(crops) > 1:
            prefer_small = 1 / box_area(masks.crop_boxes)
            masks = masks.select(suppress(masks.scores.boxes, prefer_small, parameters.crop_nms_thresh))
        if parameters.min_mask_region_area > 0:
            masks = self._remove_small_regions(masks, (height, width))
        return masks

    def _search_crop(self, image: NDArray[np.uint8], crop_box: list[int], grid: NDArray[np.float64]) -> FoundMasks:
        left, top, right, bottom = crop_box
        size = (bottom - top, right - left)
        points = grid * np.array(size)[::-1]
        resize = ResizeLongestSide(self.sam.image_encoder.img_size)
        resized = resize.apply_image(image[top:bottom, left:right])
        upsampler = MaskUpsampler(
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
            self.decoder.tables(self._embed(resized), upsampler.logits_size),
            upsampler,
            torch.as_tensor(resize.apply_coords(points, size), device=self.sam.device),
            crop_box,
            image_size=(image.shape[0], image.shape[1]),
            parameters=self.parameters,
            batch=self._batch(),
        )
        scores, counts = search.run()
        prompts = torch.as_tensor(points)[scores.index // self.decoder.masks_per_prompt]
        return FoundMasks(
            counts,
            replace(scores, boxes=scores.boxes + torch.tensor([left, top, left, top])),
            prompts + torch.tensor([left, top]),
            torch.tensor(crop_box).expand(len(counts), 4),
        )

    def _batch(self) -> int:
        """Return the number of prompts that are decoded at once."""
        return max(1, self.memory_budget // self.decoder.bytes_per_prompt)

    def _halve_budget(self) -> int:
        """Halve the memory budget, and return the new batch; return 0 if the batch was 1."""
        if self._batch() == 1:
            return 0
        self.memory_budget //= 2
        return self._batch()

    def _embed(self, resized: NDArray[np.uint8]) -> Tensor:
        """Compute the embedding (1, C, H/16, W/16) float32 of an image whose long side is the encoder's image size."""
        pixels = torch.as_tensor(resized, device=self.sam.device).permute(2, 0, 1)[None]
        with torch.autocast(self.sam.device.type, DTYPES[self.dtype], enabled=self.dtype != "float32"):
            embedding = self._encode_image(self.sam.image_encoder, self.sam.preprocess(pixels), self.memory_budget)
        return embedding.float()

    def _remove_small_regions(self, masks: FoundMasks, size: tuple[int, int]) -> FoundMasks:
        """Remove small holes and islands from masks, then duplicates, preferring unchanged masks."""
        counts, boxes, changed = list(masks.counts), masks.scores.boxes.clone(), torch.zeros(len(masks.counts))
        for i, original in enumerate(masks.counts):
            mask = rle.decode([original], *size)[0]
            mask, filled = remove_small_regions(mask, self.parameters.min_mask_region_area, mode="holes")
            mask, cleared = remove_small_regions(mask, self.parameters.min_mask_region_area, mode="islands")
            if filled or cleared:
                changed[i] = 1
                boxes[i] = batched_mask_to_box(torch.from_numpy(mask))
                (counts[i],) = rle.encode(mask[None])
        threshold = max(self.parameters.box_nms_thresh, self.parameters.crop_nms_thresh)
        scores = replace(masks.scores, boxes=boxes)
        return replace(masks, counts=counts, scores=scores).select(suppress(boxes, 1 - changed, threshold))
