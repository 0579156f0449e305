"""Weighted sum of all losses, over decoder layers and kinds of queries (METHOD 7)."""

from collections.abc import Sequence

import torch
from detectron2.utils import comm
from torch import Tensor

from samcp.modeling.affinity_decoder import DecoderOutput
from samcp.modeling.denoising import DenoisingQueries
from samcp.modeling.losses import affinity_focal_loss, dice_loss, focal_loss
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.queries import QuerySet
from samcp.modeling.targets import Entities, QueryTargets, TargetBuilder


class Criterion:
    """Losses of every decoder layer.

    Args:
        targets: builds the queries' targets.
        cls, mask_focal, dice: weights of the terms; a term of weight 0 is not computed (Table 3).
        self_affinity: factor of the affinity terms of unmatched queries ("BG", Table 4).
    """

    def __init__(
        self, *, targets: TargetBuilder, cls: float, mask_focal: float, dice: float, self_affinity: float = 0.3
    ) -> None:
        self.targets = targets
        self.weights = {"loss_cls": cls, "loss_mask_focal": mask_focal, "loss_dice": dice}
        self.self_affinity = self_affinity

    def __call__(
        self,
        *,
        outputs: Sequence[DecoderOutput],
        class_logits: Sequence[Tensor],
        queries: QuerySet,
        semantic_classes: Tensor,
        thing_classes: Tensor,
        denoising: DenoisingQueries | None,
        patches: PatchBatch,
        in_crowd: Tensor,
        regions: Sequence[Entities],
        instances: Sequence[Entities],
    ) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            outputs, class_logits: one per layer.

        Returns:
            Weighted losses, scalars: ``loss_cls``, ``loss_mask_focal`` and ``loss_dice`` of matched instance queries,
            with ``_sem`` of semantic, ``_self`` of unmatched instance and ``_dn`` of denoising queries. An ending
            ``_0`` .. names an earlier layer than the last.
        """
        semantic, main = queries.num_semantic, queries.num_matching
        parts: dict[str, tuple[Tensor, Tensor, QueryTargets]] = {}
        for layer, (output, logits) in enumerate(zip(outputs, class_logits, strict=True)):
            suffix = "" if layer == len(outputs) - 1 else f"_{layer}"
            matched = self.targets.matching(
                output=output,
                class_logits=logits.detach(),
                queries=queries,
                semantic_classes=semantic_classes,
                thing_classes=thing_classes,
                patches=patches,
                in_crowd=in_crowd,
                regions=regions,
                instances=instances,
            )
            affinity = output.affinity_logits
            if semantic:
                parts["_sem" + suffix] = logits[:, :semantic], affinity[:, :semantic], matched.rows(0, semantic)
            if queries.num_instance:
                rows = slice(semantic, main)
                parts[suffix] = logits[:, rows], affinity[:, rows], matched.rows(semantic, main)
        if denoising is not None:
            known = self.targets.denoising(
                denoising=denoising,
                patches=patches,
                instances=instances,
                num_classes=class_logits[0].shape[-1],
                thing_classes=thing_classes,
            )
            for layer, (output, logits) in enumerate(zip(outputs, class_logits, strict=True)):
                suffix = "_dn" if layer == len(outputs) - 1 else f"_dn_{layer}"
                parts[suffix] = logits[:, main:], output.affinity_logits[:, main:], known

        counts = mean_over_workers(torch.stack([_counts(targets) for _, _, targets in parts.values()]))
        losses: dict[str, Tensor] = {}
        for (suffix, part), count in zip(parts.items(), counts, strict=True):
            losses |= {name + suffix: value for name, value in self._matched(*part, count).items()}
            if self.targets.self_affinity and "_sem" not in suffix and "_dn" not in suffix:
                losses |= {f"{name}_self{suffix}": value for name, value in self._unmatched(*part[1:], count).items()}
        return losses

    def _matched(self, logits: Tensor, affinity: Tensor, targets: QueryTargets, count: Tensor) -> dict[str, Tensor]:
        """Class loss of all rows and affinity losses of matched rows, each divided by its number of positive rows."""
        num_classified, num_positive, _ = count
        losses = {}
        if self.weights["loss_cls"]:
            total = focal_loss(logits, targets.classes, targets.class_weights).sum()
            losses["loss_cls"] = self.weights["loss_cls"] * total / num_classified
        return losses | self._affinity(affinity, targets, targets.positive, num_positive)

    def _unmatched(self, affinity: Tensor, targets: QueryTargets, count: Tensor) -> dict[str, Tensor]:
        """Affinity losses of unmatched rows, divided by their number."""
        losses = self._affinity(affinity, targets, targets.self_affinity, count[2])
        return {name: self.self_affinity * value for name, value in losses.items()}

    def _affinity(self, logits: Tensor, targets: QueryTargets, rows: Tensor, count: Tensor) -> dict[str, Tensor]:
        """Eq. 2 for some rows, (B, R) bool."""
        parts = logits[rows], targets.affinity[rows], targets.affinity_weights[rows]
        terms = {"loss_mask_focal": affinity_focal_loss, "loss_dice": dice_loss}
        return {
            name: self.weights[name] * term(*parts).sum() / count for name, term in terms.items() if self.weights[name]
        }


def _counts(targets: QueryTargets) -> Tensor:
    """Number of queries with a class, with an entity's affinity, and with self-affinity: the losses' denominators."""
    return torch.stack([targets.classes.any(-1).sum(), targets.positive.sum(), targets.self_affinity.sum()]).float()


def mean_over_workers(counts: Tensor) -> Tensor:
    """Total of ``counts`` over all workers, at least 1, divided by the number of workers.

    DDP averages gradients, so dividing each worker's sum by this equals dividing the total by the total count.
    """
    workers = comm.get_world_size()
    if workers > 1:
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts.clamp(min=1) / workers
