"""The search for masks in one image (or crop of one): prompts in, good and different masks out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.utils.amg import is_box_near_crop_edge
from torch import Tensor
from torchvision.ops import batched_nms

from proposal_cache.generators.sam.decoder import ImageTables, PromptDecoder
from proposal_cache.generators.sam.masks import MaskEnlarger


@dataclass(frozen=True)
class Thresholds:
    """Which masks of a crop are kept; see `SamParameters`."""

    predicted_iou: float
    stability: float
    stability_offset: float
    box_nms: float


@dataclass(frozen=True)
class Candidates:
    """n masks without their pixels; on the CPU."""

    index: Tensor
    """(n,) int64: number of the prompt, times the masks of a prompt, plus number of the mask."""
    predicted_iou: Tensor
    """(n,) float32."""
    stability: Tensor
    """(n,) float32."""
    boxes: Tensor
    """(n, 4) int64 XYXY, last pixel included."""

    def __len__(self) -> int:
        return len(self.index)

    def select(self, index: Tensor) -> "Candidates":
        return Candidates(self.index[index], self.predicted_iou[index], self.stability[index], self.boxes[index])

    def moved(self, x: int, y: int) -> "Candidates":
        """With boxes in a frame whose origin is (x, y) further to the left and up."""
        return Candidates(self.index, self.predicted_iou, self.stability, self.boxes + torch.tensor([x, y, x, y]))

    @staticmethod
    def none() -> "Candidates":
        return Candidates(
            torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0), torch.zeros((0, 4), dtype=torch.int64)
        )

    @staticmethod
    def concatenate(parts: Sequence["Candidates"]) -> "Candidates":
        parts = [Candidates.none(), *parts]
        return Candidates(
            torch.cat([part.index for part in parts]),
            torch.cat([part.predicted_iou for part in parts]),
            torch.cat([part.stability for part in parts]),
            torch.cat([part.boxes for part in parts]),
        )


class CropSearch:
    """Segment-everything in one crop.

    Args:
        decoder: of the model.
        tables: what the decoder computed from the crop's embedding.
        points: (n, 2) prompts, XY in pixels of the encoder's input.
        enlarger: of the crop's masks.
        crop_box: XYXY of the crop in the image.
        image_size: (height, width) of the image.
        thresholds: which masks to keep.
        batch: prompts decoded at once.
    """

    def __init__(
        self,
        decoder: PromptDecoder,
        tables: ImageTables,
        points: Tensor,
        enlarger: MaskEnlarger,
        *,
        crop_box: Sequence[int],
        image_size: tuple[int, int],
        thresholds: Thresholds,
        batch: int,
    ) -> None:
        self.decoder = decoder
        self.tables = tables
        self.points = points
        self.enlarger = enlarger
        self.crop_box = list(crop_box)
        self.image_size = image_size
        self.thresholds = thresholds
        self.batch = batch

    def run(self) -> tuple[Candidates, list[bytes]]:
        """The masks that survive filters and non-maximum suppression, best first, and their encoded counts.

        Boxes are in the crop's frame, counts in the image's. No mask's pixels outlive its batch: the winners among the
        masks found so far are encoded at once. Some of them lose to a later one, which may bring back a mask that they
        had beaten; the few such masks are decoded once more in the end.
        """
        found: list[Candidates] = []
        best = Candidates.none()
        best_counts: list[bytes] = []
        for prompts in torch.arange(len(self.points)).split(self.batch):
            new, logits = self._candidates(prompts)
            found.append(new)
            rivals = Candidates.concatenate([best, new])
            winners = self._suppress(rivals)
            new_winners = winners[winners >= len(best)] - len(best)
            new_counts = dict(zip(new_winners.tolist(), self._encode(logits[new_winners]), strict=True))
            best_counts = [best_counts[i] if i < len(best) else new_counts[i - len(best)] for i in winners.tolist()]
            best = rivals.select(winners)
        candidates = Candidates.concatenate(found)
        kept = candidates.select(self._suppress(candidates))
        counts = dict(zip(best.index.tolist(), best_counts, strict=True))
        again = [i for i in kept.index.tolist() if i not in counts]
        counts |= self._encode_again(again) if again else {}
        return kept, [counts[i] for i in kept.index.tolist()]

    def _candidates(self, prompts: Tensor) -> tuple[Candidates, Tensor]:
        """The masks of some prompts (numbers into `points`) that pass the filters, and their logits (n, h, w)."""
        limits = self.thresholds
        decoded = self.decoder.decode(self.tables, self.points[prompts])
        keep = decoded.predicted_iou > limits.predicted_iou if limits.predicted_iou > 0 else _all(decoded.predicted_iou)
        logits = self.decoder.mask_logits(self.tables, decoded, keep)
        scores = self.enlarger.score(logits, limits.stability_offset)
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
        return self.enlarger.encode(logits, (self.crop_box[0], self.crop_box[1]), (height, width))

    def _encode_again(self, indices: Sequence[int]) -> dict[int, bytes]:
        """Counts of masks by index, from their prompts."""
        per_prompt = self.decoder.masks_per_prompt
        wanted = torch.tensor(sorted(indices), dtype=torch.int64)
        counts: dict[int, bytes] = {}
        for prompts in (wanted // per_prompt).unique().split(self.batch):
            index = prompts[:, None] * per_prompt + torch.arange(per_prompt)
            keep = torch.isin(index, wanted)
            decoded = self.decoder.decode(self.tables, self.points[prompts])
            logits = self.decoder.mask_logits(self.tables, decoded, keep.to(self.points.device))
            counts |= zip(index[keep].tolist(), self._encode(logits), strict=True)
        return counts


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression exactly as segment_anything has it: kept indices, highest score first."""
    return batched_nms(boxes.float(), scores, torch.zeros(len(boxes)), threshold)


def _all(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)
