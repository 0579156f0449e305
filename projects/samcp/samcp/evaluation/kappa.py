"""Several κ in one run (Table 8): images are read and encoded once, only the fusion of scores is repeated."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from ..meta_arch import SAMCP
from ..modeling.open_vocabulary import ScoreFusion


class KappaSweep(nn.Module):
    """A model whose output for an image is, for every κ, what the model gives for it.

    Args:
        model: over a CLIP backbone.
        kappas: each for classes of the training and others alike.
        rule: of :class:`ScoreFusion`.
    """

    def __init__(self, model: SAMCP, kappas: Sequence[float], rule: str) -> None:
        super().__init__()
        self.model = model
        self.fusions = {kappa: ScoreFusion(kappa=kappa, kappa_unseen=kappa, rule=rule) for kappa in kappas}

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[float, dict]]:
        model, patches = self.model, [x["patch_rles"] for x in batched_inputs]
        images = model.encode(batched_inputs)
        learned = model.predict_learned(images)
        clip = model.predict_clip(images, learned, patches)
        return [
            {
                kappa: model.inference(fusion(said, opinion, model.seen_classes), own)
                for kappa, fusion in self.fusions.items()
            }
            for said, opinion, own in zip(learned, clip, patches, strict=True)
        ]


class KappaEvaluator(DatasetEvaluator):
    """Evaluates what :class:`KappaSweep` gives.

    Args:
        evaluators: one for each κ.
    """

    def __init__(self, evaluators: Mapping[float, DatasetEvaluator]) -> None:
        self.evaluators = dict(evaluators)

    def reset(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[float, Any]]) -> None:
        for kappa, evaluator in self.evaluators.items():
            evaluator.process(inputs, [output[kappa] for output in outputs])

    def evaluate(self) -> dict[float, Any]:
        """κ -> task -> figure."""
        return {kappa: evaluator.evaluate() for kappa, evaluator in self.evaluators.items()}
