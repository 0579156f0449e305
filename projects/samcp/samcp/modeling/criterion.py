"""The sum of all losses, over layers and kinds of queries (METHOD 7)."""

from collections.abc import Sequence

import torch
from detectron2.utils import comm
from torch import Tensor

from .affinity_decoder import DecoderOutput
from .denoising import DenoisingQueries
from .losses import affinity_focal_loss, dice_loss, focal_loss
from .patch_batch import PatchBatch
from .queries import QuerySet
from .targets import Entities, QueryTargets, TargetBuilder


class Criterion:
    """Losses of every decoder layer.

    Args:
        targets: builds what queries are taught.
        cls, mask_focal, dice: weights of the terms; a term of weight 0 is left out (Table 3).
    """

    def __init__(self, *, targets: TargetBuilder, cls: float, mask_focal: float, dice: float) -> None:
        self.targets = targets
        self.weights = {"loss_cls": cls, "loss_mask_focal": mask_focal, "loss_dice": dice}

    def __call__(
        self,
        *,
        outputs: Sequence[DecoderOutput],
        class_logits: Sequence[Tensor],
        queries: QuerySet,
        semantic_classes: Tensor,
        denoising: DenoisingQueries | None,
        patches: PatchBatch,
        in_crowd: Tensor,
        regions: Sequence[Entities],
        instances: Sequence[Entities],
    ) -> dict[str, Tensor]:
        """Returns weighted losses: ``loss_cls`` .. of the last layer, ``loss_cls_0`` .. of the earlier ones, and the
        same with ``_dn`` for denoising queries."""
        main = queries.num_matching
        parts: dict[str, tuple[Tensor, Tensor, QueryTargets]] = {}
        for layer, (output, logits) in enumerate(zip(outputs, class_logits, strict=True)):
            suffix = "" if layer == len(outputs) - 1 else f"_{layer}"
            matched = self.targets.matching(
                output=output,
                class_logits=logits.detach(),
                queries=queries,
                semantic_classes=semantic_classes,
                patches=patches,
                in_crowd=in_crowd,
                regions=regions,
                instances=instances,
            )
            parts[suffix] = logits[:, :main], output.affinity_logits[:, :main], matched
        if denoising is not None:
            known = self.targets.denoising(
                denoising=denoising, patches=patches, instances=instances, num_classes=class_logits[0].shape[-1]
            )
            for suffix, output, logits in zip(list(parts), outputs, class_logits, strict=True):
                parts["_dn" + suffix] = logits[:, main:], output.affinity_logits[:, main:], known

        counts = mean_over_workers(torch.stack([t for _, _, targets in parts.values() for t in _counts(targets)]))
        losses: dict[str, Tensor] = {}
        for (positive, taught), (suffix, part) in zip(counts.view(-1, 2), parts.items(), strict=True):
            for name, total in self._sums(*part).items():
                losses[name + suffix] = total / (positive if name == "loss_cls" else taught)
        return losses

    def _sums(self, logits: Tensor, affinity: Tensor, targets: QueryTargets) -> dict[str, Tensor]:
        taught = targets.has_affinity.float()
        terms = {
            "loss_cls": lambda: focal_loss(logits, targets.classes, targets.class_weights),
            "loss_mask_focal": lambda: affinity_focal_loss(affinity, targets.affinity, targets.affinity_weights),
            "loss_dice": lambda: taught * dice_loss(affinity, targets.affinity, targets.affinity_weights),
        }
        return {name: weight * terms[name]().sum() for name, weight in self.weights.items() if weight}


def _counts(targets: QueryTargets) -> tuple[Tensor, Tensor]:
    """What the sums of class losses and of affinity losses are divided by.

    Eq. 2 divides by the number of queries with epsilon = 1, which are the positive ones; where self-affinity ("BG")
    gives the unmatched ones a target, too, they count as well. Divided by the positive ones alone, a hundred rows of
    self-affinity would outweigh all else.
    """
    return targets.positive.sum().float(), targets.has_affinity.sum().float()


def mean_over_workers(counts: Tensor) -> Tensor:
    """The total of ``counts`` over all workers, at least 1, divided by the number of workers.

    DDP averages gradients, so dividing each worker's sum by this equals dividing the total by the total count.
    """
    workers = comm.get_world_size()
    if workers > 1:
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts.clamp(min=1) / workers
