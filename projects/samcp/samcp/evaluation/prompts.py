"""Accuracy of Prompt I and Prompt II against the ground-truth affinity (METHOD 6)."""

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
    """Accuracy of Prompt I per patch, and precision and recall of Prompt II per pair of patches.

    Prompt I: a patch of an entity is correct if its best label is the class of one of its entities. The accuracy of a
    class is the mean over the patches of its entities. Patches without an entity are not counted.

    Prompt II: for every thing class T and every pair of patches, the pair is predicted positive if P(i, j | T) exceeds
    the threshold, and a true pair if both patches belong to one instance of T. A pair merged under a wrong label is
    therefore a false positive.

    Args:
        dataset_name: a registered dataset.
        threshold: least P(i, j | T) of a positive pair.
        top_instances: number of queries; see :meth:`Inference.same_instance`.
    """

    def __init__(self, dataset_name: str, *, threshold: float, top_instances: int) -> None:
        vocabulary = Vocabulary.of_dataset(dataset_name)
        self._names = vocabulary.names
        self._things = [i for i, is_thing in enumerate(vocabulary.is_thing) if is_thing]
        self._prompts = Inference(thing_classes=self._things, num_classes=len(self._names), top_instances=top_instances)
        self._threshold = threshold

    def reset(self) -> None:
        self._patches = np.zeros((2, len(self._names)), dtype=np.int64)  # correct and all, per class
        self._pairs = np.zeros(3, dtype=np.int64)  # true positives, predicted pairs, true pairs

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add the predictions of a batch.

        Args:
            inputs: one dict per image, with the targets ``instances`` and ``sem_segments``.
            outputs: one dict per image, with ``predictions``; the model returns them if MODEL.SAMCP.TEST.PROMPTS_ON.
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
        """Compute the metrics in percent; NaN for an empty mean.

        Returns:
            ``prompt_1``: "accuracy", the mean over classes, and "accuracy-NAME" for each class; ``prompt_2``:
            "precision", "recall" and "F1". None on ranks other than 0.
        """
        gathered = comm.gather((self._patches, self._pairs))
        if not comm.is_main_process():
            return None
        correct, total = sum(patches for patches, _ in gathered)
        true_positive, positive, true = sum(pairs for _, pairs in gathered)
        accuracy = {name: _percent(c, t) for name, c, t in zip(self._names, correct, total, strict=True)}
        counted = [value for value in accuracy.values() if not np.isnan(value)]
        metrics = OrderedDict(
            prompt_1={"accuracy": float(np.mean(counted)) if counted else float("nan")}
            | {f"accuracy-{name}": value for name, value in accuracy.items()},
            prompt_2={
                "precision": _percent(true_positive, positive),
                "recall": _percent(true_positive, true),
                "F1": _percent(2 * true_positive, positive + true),
            },
        )
        logger.info(
            "Prompt I, mean accuracy: %.1f. Prompt II: %s", metrics["prompt_1"]["accuracy"], metrics["prompt_2"]
        )
        return metrics

    def _count_patches(self, labels: Tensor, entities: Sequence[Instances]) -> np.ndarray:
        """Count correct and all patches of one image per class of their entities, (2, C), from label scores (N, C)."""
        truth = torch.zeros_like(labels, dtype=torch.bool)
        for segments in entities:
            for c, members in zip(segments.gt_classes.tolist(), segments.gt_affinity, strict=True):
                truth[members, c] = True
        best, label = labels.max(dim=1)
        correct = truth[torch.arange(len(truth)), label] & (best > 0)
        return np.stack([truth[correct].sum(0).numpy(), truth.sum(0).numpy()])


def _pairs_of_one_instance(affinity: Tensor) -> Tensor:
    """Return the pairs of patches that belong to one instance, (N, N) bool, from G (K, N)."""
    members = affinity.float()
    return members.T @ members > 0


def _count_pairs(joint: Tensor) -> int:
    """Count the pairs i < j of a symmetric (N, N) matrix."""
    return int(joint.triu(diagonal=1).sum())


def _percent(part: float, whole: float) -> float:
    return 100 * float(part) / float(whole) if whole else float("nan")
