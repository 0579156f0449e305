"""Weighted sum of all losses, over decoder layers and kinds of queries (METHOD 7)."""

from collections.abc import Mapping, Sequence

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
        regions: Entities,
        instances: Entities,
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
        num_classes = class_logits[0].shape[-1]
        kinds: dict[str, tuple[slice, Sequence[QueryTargets]]] = {}
        if semantic:
            of_all_layers = self.targets.semantic(
                semantic_classes=semantic_classes, regions=regions, patches=patches, num_classes=num_classes
            )
            kinds["_sem"] = slice(semantic), [of_all_layers] * len(outputs)
        if queries.num_instance:
            by_layer = self.targets.instance(
                outputs=outputs,
                class_logits=class_logits,
                queries=queries,
                thing_classes=thing_classes,
                patches=patches,
                in_crowd=in_crowd,
                instances=instances,
            )
            kinds[""] = slice(semantic, main), by_layer
        if denoising is not None:
            of_all_layers = self.targets.denoising(
                denoising=denoising,
                patches=patches,
                instances=instances,
                num_classes=num_classes,
                thing_classes=thing_classes,
            )
            kinds["_dn"] = slice(main, None), [of_all_layers] * len(outputs)
        return self._of_all_layers(outputs, class_logits, kinds)

    def _of_all_layers(
        self,
        outputs: Sequence[DecoderOutput],
        class_logits: Sequence[Tensor],
        kinds: Mapping[str, tuple[slice, Sequence[QueryTargets]]],
    ) -> dict[str, Tensor]:
        """Return the losses; ``kinds`` has, by suffix, the rows of the queries and their targets, one per layer."""
        last = len(outputs) - 1
        parts = [
            (kind, layer, class_logits[layer][:, rows], outputs[layer].affinity_logits[:, rows], targets)
            for kind, (rows, by_layer) in kinds.items()
            for layer, targets in enumerate(by_layer)
        ]
        counts = mean_over_workers(torch.stack([_counts(targets) for *_, targets in parts]))
        losses: dict[str, Tensor] = {}
        for (kind, layer, logits, affinity, targets), count in zip(parts, counts, strict=True):
            suffix = "" if layer == last else f"_{layer}"
            terms = self._losses(kind, logits, affinity, targets, count)
            losses |= {name + suffix: value for name, value in terms.items()}
        return losses

    def _losses(
        self, kind: str, logits: Tensor, affinity: Tensor, targets: QueryTargets, count: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of the queries of one kind in one layer.

        The class loss is summed over all queries and divided by the number of those with a class. The affinity losses
        (Eq. 2) are the means over matched and over unmatched queries.
        """
        num_classified, num_positive, num_self = count
        losses = {}
        if weight := self.weights["loss_cls"]:
            total = focal_loss(logits, targets.classes, targets.class_weights).sum()
            losses["loss_cls" + kind] = weight * total / num_classified
        # Multiplied by 0 only, an infinite affinity without target would give NaN.
        affinity = affinity.masked_fill(~(targets.positive | targets.self_affinity)[..., None], 0.0)
        terms = {"loss_mask_focal": affinity_focal_loss, "loss_dice": dice_loss}
        for name, term in terms.items():
            if weight := self.weights[name]:
                rows = term(affinity, targets.affinity, targets.affinity_weights)
                losses[name + kind] = weight * (rows * targets.positive).sum() / num_positive
                if self.targets.self_affinity and not kind:
                    unmatched = (rows * targets.self_affinity).sum() / num_self
                    losses[f"{name}_self"] = self.self_affinity * weight * unmatched
        return losses


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
