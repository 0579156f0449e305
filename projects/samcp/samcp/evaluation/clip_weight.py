"""Sweep of the CLIP weight κ (Table 8): images are encoded once, and only the score fusion is repeated."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from samcp.modeling.meta_arch import SAMCP
from samcp.modeling.open_vocabulary import ScoreFusion


class ClipWeightSweep(nn.Module):
    """Model that returns, for each image, the outputs of ``model`` for every CLIP weight.

    Args:
        model: a SAMCP with a CLIP backbone or a namer.
        clip_weights: values of κ, each used for seen and unseen classes.
        rule: see :class:`ScoreFusion`.
    """

    def __init__(self, model: SAMCP, clip_weights: Sequence[float], rule: str) -> None:
        super().__init__()
        self.model = model
        self.fusions = {
            weight: ScoreFusion(clip_weight=weight, clip_weight_unseen=weight, rule=rule) for weight in clip_weights
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[float, dict]]:
        """Return one dict per image: CLIP weight -> outputs of :meth:`SAMCP.forward`."""
        model, patches = self.model, [x["patch_rles"] for x in batched_inputs]
        images = model.encode(batched_inputs)
        learned = model.predict_learned(images)
        named = model.predict_names(images, learned, patches)
        return [
            {
                weight: model.inference(fusion(predictions, scores, model.seen_classes), own)
                for weight, fusion in self.fusions.items()
            }
            for (predictions, scores), own in zip(named, patches, strict=True)
        ]


class ClipWeightEvaluator(DatasetEvaluator):
    """Evaluator of the outputs of :class:`ClipWeightSweep`.

    Args:
        evaluators: CLIP weight -> evaluator.
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
        """Return CLIP weight -> the results of its evaluator."""
        return {weight: evaluator.evaluate() for weight, evaluator in self.evaluators.items()}
