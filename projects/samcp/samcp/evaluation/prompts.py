"""Accuracy of the two prompts themselves, against the ground-truth affinity (METHOD 6)."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from samcp.modeling.inference import Inference
from samcp.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class PromptEvaluator(DatasetEvaluator):
    """Evaluate Prompt I per patch and Prompt II per pair of patches.

    Prompt I: a patch that belongs to an entity is right if its best label is the class of one of its entities. The
    accuracy of a class is that of the patches of its entities. Patches of no entity are not counted.

    Prompt II: over all things T and all pairs of patches, a pair is positive if P(i, j | T) exceeds the threshold, and
    true if one instance of T has both. So a pair joined under a wrong label is wrong.

    Args:
        dataset_name: a registered dataset.
        threshold: of P(i, j | T).
    """

    def __init__(self, dataset_name: str, *, threshold: float) -> None:
        vocabulary = Vocabulary.of_dataset(dataset_name)
        self._names = vocabulary.names
        self._things = [i for i, is_thing in enumerate(vocabulary.is_thing) if is_thing]
        self._prompts = Inference(thing_classes=self._things, num_classes=len(self._names))
        self._threshold = threshold

    def reset(self) -> None:
        self._patches = np.zeros((2, len(self._names)), dtype=np.int64)  # right, all; per class
        self._pairs = np.zeros(3, dtype=np.int64)  # true positives, positives, true pairs

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count images.

        Args:
            inputs: with the targets ``instances`` and ``sem_segments``.
            outputs: with ``predictions``, see TEST.PROMPTS_ON.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            predictions, instances = output["predictions"], sample["instances"]
            labels = self._prompts.patch_class_scores(predictions)
            self._patches += self._count_patches(labels, [instances, sample["sem_segments"]])
            for thing in self._things:
                joint = self._prompts.same_instance(predictions, [thing]) > self._threshold
                true = _pairs_of_one_instance(instances.gt_affinity[instances.gt_classes == thing])
                self._pairs += [_count_pairs(joint & true), _count_pairs(joint), _count_pairs(true)]

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Compute the figures.

        Returns:
            in percent, ``prompt_1``: "accuracy", the mean over classes, and "accuracy-NAME" of each class;
            ``prompt_2``: "precision", "recall" and "F1". NaN where there is nothing to count.
        """
        gathered = comm.gather((self._patches, self._pairs))
        if not comm.is_main_process():
            return None
        right, total = sum(patches for patches, _ in gathered)
        true_positive, positive, true = sum(pairs for _, pairs in gathered)
        accuracy = {name: _percent(r, t) for name, r, t in zip(self._names, right, total, strict=True)}
        counted = [value for value in accuracy.values() if not np.isnan(value)]
        figures = OrderedDict(
            prompt_1={"accuracy": float(np.mean(counted)) if counted else float("nan")}
            | {f"accuracy-{name}": value for name, value in accuracy.items()},
            prompt_2={
                "precision": _percent(true_positive, positive),
                "recall": _percent(true_positive, true),
                "F1": _percent(2 * true_positive, positive + true),
            },
        )
        logger.info(
            "Prompt I, mean accuracy: %.1f. Prompt II: %s", figures["prompt_1"]["accuracy"], figures["prompt_2"]
        )
        return figures

    def _count_patches(self, labels: Tensor, entities: Sequence[Instances]) -> np.ndarray:
        """(2, C): right and all patches of one image, per class of their entities; from label scores (N, C)."""
        truth = torch.zeros_like(labels, dtype=torch.bool)
        for segments in entities:
            for c, members in zip(segments.gt_classes.tolist(), segments.gt_affinity, strict=True):
                truth[members, c] = True
        best, label = labels.max(dim=1)
        right = truth[torch.arange(len(truth)), label] & (best > 0)
        return np.stack([truth[right].sum(0).numpy(), truth.sum(0).numpy()])


def _pairs_of_one_instance(affinity: Tensor) -> Tensor:
    """(N, N) bool: which patches belong to one of K instances together; from G (K, N)."""
    members = affinity.float()
    return members.T @ members > 0


def _count_pairs(joint: Tensor) -> int:
    """How many pairs i < j a symmetric (N, N) has."""
    return int(joint.triu(diagonal=1).sum())


def _percent(part: float, whole: float) -> float:
    return 100 * float(part) / float(whole) if whole else float("nan")
