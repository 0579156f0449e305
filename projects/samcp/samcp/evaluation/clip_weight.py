"""Several κ in one run (Table 8): images are read and encoded once, only the fusion of scores is repeated."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from samcp.modeling.meta_arch import SAMCP
from samcp.modeling.open_vocabulary import ScoreFusion


class ClipWeightSweep(nn.Module):
    """A model whose output for an image is, for every κ, what the model gives for it.

    Args:
        model: over a CLIP backbone.
        clip_weights: each for classes of the training and others alike.
        rule: of :class:`ScoreFusion`.
    """

    def __init__(self, model: SAMCP, clip_weights: Sequence[float], rule: str) -> None:
        super().__init__()
        self.model = model
        self.fusions = {
            weight: ScoreFusion(clip_weight=weight, clip_weight_unseen=weight, rule=rule) for weight in clip_weights
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[float, dict]]:
        model, patches = self.model, [x["patch_rles"] for x in batched_inputs]
        images = model.encode(batched_inputs)
        learned = model.predict_learned(images)
        clip = model.predict_clip(images, learned, patches)
        return [
            {
                weight: model.inference(fusion(said, opinion, model.seen_classes), own)
                for weight, fusion in self.fusions.items()
            }
            for said, opinion, own in zip(learned, clip, patches, strict=True)
        ]


class ClipWeightEvaluator(DatasetEvaluator):
    """Evaluates what :class:`ClipWeightSweep` gives.

    Args:
        evaluators: one for each κ.
    """

    def __init__(self, evaluators: Mapping[float, DatasetEvaluator]) -> None:
        self.evaluators = dict(evaluators)

    def reset(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[float, Any]]) -> None:
        for weight, evaluator in self.evaluators.items():
            evaluator.process(inputs, [output[weight] for output in outputs])

    def evaluate(self) -> dict[float, Any]:
        """κ -> task -> figure."""
        return {weight: evaluator.evaluate() for weight, evaluator in self.evaluators.items()}
