"""Mask search in one image or crop: decoding of prompts, filters and non-maximum suppression."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.utils.amg import is_box_near_crop_edge
from torch import Tensor
from torchvision.ops import batched_nms

from proposal_cache.generators.sam.decoder import ImageTables, PromptDecoder
from proposal_cache.generators.sam.masks import MaskUpsampler


@dataclass(frozen=True)
class SamParameters:
    """Parameters of `segment_anything.SamAutomaticMaskGenerator`; some defaults differ."""

    points_per_side: int = 48  # the image is prompted with points_per_side² points
    pred_iou_thresh: float = 0.8  # minimum predicted IoU; 0 keeps all masks
    stability_score_thresh: float = 0.9  # minimum stability score; 0 keeps all masks
    stability_score_offset: float = 1.0  # added to and subtracted from the logit threshold to compute the score
    box_nms_thresh: float = 0.7  # box IoU above which the mask with the lower predicted IoU is dropped
    crop_n_layers: int = 0  # layers of crops searched in addition to the image; layer i has (2^i)² crops
    crop_nms_thresh: float = 0.7  # as `box_nms_thresh`, between crops; masks of smaller crops are kept
    crop_overlap_ratio: float = 512 / 1500  # of the crops of the first layer, relative to the image's short side
    crop_n_points_downscale_factor: int = 1  # in layer i, `points_per_side` is divided by this to the power of i
    min_mask_region_area: int = 0  # holes and islands of fewer pixels, then duplicates, are removed; 0 to disable

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
                f"no points for the smallest crops: points_per_side {self.points_per_side} / {factor}^{layers}; "
                "use more points, fewer layers, or a smaller crop_n_points_downscale_factor"
            )


@dataclass(frozen=True)
class Candidates:
    """Scores and boxes of n masks, on the CPU."""

    index: Tensor  # (n,) int64: number of the prompt, times masks per prompt, plus number of the mask
    predicted_iou: Tensor  # (n,) float32
    stability: Tensor  # (n,) float32
    boxes: Tensor  # (n, 4) int64 XYXY, last pixel inclusive

    def __len__(self) -> int:
        return len(self.index)

    def select(self, index: Tensor) -> "Candidates":
        return Candidates(*(column[index] for column in vars(self).values()))

    @staticmethod
    def concatenate(parts: Sequence["Candidates"]) -> "Candidates":
        """Concatenate one part or more, in order."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Candidates(*(torch.cat(column) for column in columns))


@dataclass(frozen=True)
class CropSearch:
    """Mask search in one crop."""

    decoder: PromptDecoder
    tables: ImageTables  # of the crop's embedding
    upsampler: MaskUpsampler  # of the crop's masks
    points: Tensor  # (n, 2) prompts, XY in pixels of the encoder's input
    crop_box: list[int]  # XYXY of the crop in the image
    image_size: tuple[int, int]  # (height, width) of the image
    parameters: SamParameters
    batch: int  # number of prompts decoded at once

    def run(self) -> tuple[Candidates, list[bytes]]:
        """Return the masks that pass filters and non-maximum suppression, best first, and their compressed counts.

        Boxes are in coordinates of the crop, counts in those of the image. To bound memory, logits are discarded after
        each batch: the masks kept so far are encoded immediately. If a later mask suppresses one of them, masks that
        it had suppressed may become valid again; these few are decoded a second time at the end.
        """
        none = torch.zeros(0)
        best = Candidates(none.long(), none, none, none.reshape(0, 4).long())
        found = [best]
        counts: dict[int, bytes] = {}  # of the best
        for prompts in torch.arange(len(self.points)).split(self.batch):
            new, logits = self._candidates(prompts)
            found.append(new)
            merged = Candidates.concatenate([best, new])
            kept = self._suppress(merged)
            added = kept[kept >= len(best)] - len(best)
            counts |= zip(new.index[added].tolist(), self._encode(logits[added]), strict=True)
            best = merged.select(kept)
            counts = {i: counts[i] for i in best.index.tolist()}
        candidates = Candidates.concatenate(found)
        result = candidates.select(self._suppress(candidates))
        missing = [i for i in result.index.tolist() if i not in counts]
        if missing:
            counts |= self._decode_again(missing)
        return result, [counts[i] for i in result.index.tolist()]

    def _candidates(self, prompts: Tensor) -> tuple[Candidates, Tensor]:
        """Return the masks of prompts (indices into `points`) that pass the filters, and their logits (n, h, w)."""
        parameters = self.parameters
        decoded = self.decoder.decode(self.tables, self.points[prompts])
        keep = (decoded.predicted_iou > parameters.pred_iou_thresh) | (parameters.pred_iou_thresh <= 0)
        logits = self.decoder.mask_logits(self.tables, decoded, keep)
        stability, boxes = self.upsampler.score(logits, parameters.stability_score_offset)
        good = (stability >= parameters.stability_score_thresh) | (parameters.stability_score_thresh <= 0)
        height, width = self.image_size
        good &= ~is_box_near_crop_edge(boxes, self.crop_box, [0, 0, width, height])
        index = prompts[:, None] * keep.shape[1] + torch.arange(keep.shape[1])
        columns = (index[keep.cpu()], decoded.predicted_iou[keep].cpu(), stability.cpu(), boxes.cpu())
        return Candidates(*columns).select(good.cpu()), logits[good]

    def _suppress(self, masks: Candidates) -> Tensor:
        return suppress(masks.boxes, masks.predicted_iou, self.parameters.box_nms_thresh)

    def _encode(self, logits: Tensor) -> list[bytes]:
        return self.upsampler.encode(logits, (self.crop_box[0], self.crop_box[1]), self.image_size)

    def _decode_again(self, indices: Sequence[int]) -> dict[int, bytes]:
        """Return the compressed counts of masks by index."""
        per_prompt = self.decoder.masks_per_prompt
        selected = torch.tensor(sorted(indices), dtype=torch.int64)
        counts: dict[int, bytes] = {}
        for prompts in (selected // per_prompt).unique().split(self.batch):
            index = prompts[:, None] * per_prompt + torch.arange(per_prompt)
            keep = torch.isin(index, selected)
            decoded = self.decoder.decode(self.tables, self.points[prompts])
            logits = self.decoder.mask_logits(self.tables, decoded, keep.to(self.points.device))
            counts |= zip(index[keep].tolist(), self._encode(logits), strict=True)
        return counts


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the indices kept by non-maximum suppression, highest score first, as segment_anything computes it."""
    return batched_nms(boxes.float(), scores, torch.zeros(len(boxes)), threshold)
