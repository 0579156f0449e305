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
class Thresholds:
    """Filter thresholds of a crop; see `SamParameters`."""

    predicted_iou: float
    stability: float
    stability_offset: float
    box_nms: float


@dataclass(frozen=True)
class Candidates:
    """Scores and boxes of n masks, on the CPU."""

    index: Tensor
    """(n,) int64: number of the prompt, times masks per prompt, plus number of the mask."""
    predicted_iou: Tensor
    """(n,) float32."""
    stability: Tensor
    """(n,) float32."""
    boxes: Tensor
    """(n, 4) int64 XYXY, last pixel inclusive."""

    def __len__(self) -> int:
        return len(self.index)

    def select(self, index: Tensor) -> "Candidates":
        return Candidates(self.index[index], self.predicted_iou[index], self.stability[index], self.boxes[index])

    def shift(self, x: int, y: int) -> "Candidates":
        """Add (x, y) to the boxes."""
        return Candidates(self.index, self.predicted_iou, self.stability, self.boxes + torch.tensor([x, y, x, y]))

    @staticmethod
    def empty() -> "Candidates":
        return Candidates(
            torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0), torch.zeros((0, 4), dtype=torch.int64)
        )

    @staticmethod
    def concatenate(parts: Sequence["Candidates"]) -> "Candidates":
        parts = [Candidates.empty(), *parts]
        return Candidates(
            torch.cat([part.index for part in parts]),
            torch.cat([part.predicted_iou for part in parts]),
            torch.cat([part.stability for part in parts]),
            torch.cat([part.boxes for part in parts]),
        )


class CropSearch:
    """Mask search in one crop.

    Args:
        decoder: of the model.
        tables: of the crop's embedding.
        points: (n, 2) prompts, XY in pixels of the encoder's input.
        upsampler: of the crop's masks.
        crop_box: XYXY of the crop in the image.
        image_size: (height, width) of the image.
        thresholds: of the filters.
        batch: number of prompts decoded at once.
    """

    def __init__(
        self,
        decoder: PromptDecoder,
        tables: ImageTables,
        points: Tensor,
        upsampler: MaskUpsampler,
        *,
        crop_box: Sequence[int],
        image_size: tuple[int, int],
        thresholds: Thresholds,
        batch: int,
    ) -> None:
        self.decoder = decoder
        self.tables = tables
        self.points = points
        self.upsampler = upsampler
        self.crop_box = list(crop_box)
        self.image_size = image_size
        self.thresholds = thresholds
        self.batch = batch

    def run(self) -> tuple[Candidates, list[bytes]]:
        """Return the masks that pass filters and non-maximum suppression, best first, and their compressed counts.

        Boxes are in coordinates of the crop, counts in those of the image. To bound memory, logits are discarded after
        each batch: the masks kept so far are encoded immediately. If a later mask suppresses one of them, masks that
        it had suppressed may become valid again; these few are decoded a second time at the end.
        """
        found: list[Candidates] = []
        best = Candidates.empty()
        best_counts: list[bytes] = []
        for prompts in torch.arange(len(self.points)).split(self.batch):
            new, logits = self._candidates(prompts)
            found.append(new)
            merged = Candidates.concatenate([best, new])
            kept = self._suppress(merged)
            new_kept = kept[kept >= len(best)] - len(best)
            new_counts = dict(zip(new_kept.tolist(), self._encode(logits[new_kept]), strict=True))
            best_counts = [best_counts[i] if i < len(best) else new_counts[i - len(best)] for i in kept.tolist()]
            best = merged.select(kept)
        candidates = Candidates.concatenate(found)
        result = candidates.select(self._suppress(candidates))
        counts = dict(zip(best.index.tolist(), best_counts, strict=True))
        missing = [i for i in result.index.tolist() if i not in counts]
        counts |= self._decode_again(missing) if missing else {}
        return result, [counts[i] for i in result.index.tolist()]

    def _candidates(self, prompts: Tensor) -> tuple[Candidates, Tensor]:
        """Return the masks of prompts (indices into `points`) that pass the filters, and their logits (n, h, w)."""
        limits = self.thresholds
        decoded = self.decoder.decode(self.tables, self.points[prompts])
        keep = decoded.predicted_iou > limits.predicted_iou if limits.predicted_iou > 0 else _all(decoded.predicted_iou)
        logits = self.decoder.mask_logits(self.tables, decoded, keep)
        scores = self.upsampler.score(logits, limits.stability_offset)
        good = scores.stability >= limits.stability if limits.stability > 0 else _all(scores.stability)
        height, width = self.image_size
        good &= ~is_box_near_crop_edge(scores.boxes, self.crop_box, [0, 0, width, height])
        index = prompts[:, None] * keep.shape[1] + torch.arange(keep.shape[1])
        on_cpu = good.cpu()
        candidates = Candidates(
            index[keep.cpu()][on_cpu],
            decoded.predicted_iou[keep].cpu()[on_cpu],
            scores.stability.cpu()[on_cpu],
            scores.boxes.cpu()[on_cpu],
        )
        return candidates, logits[good]

    def _suppress(self, masks: Candidates) -> Tensor:
        return suppress(masks.boxes, masks.predicted_iou, self.thresholds.box_nms)

    def _encode(self, logits: Tensor) -> list[bytes]:
        height, width = self.image_size
        return self.upsampler.encode(logits, (self.crop_box[0], self.crop_box[1]), (height, width))

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


def _all(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)
