"""Images without a prediction."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from samcp.data.ground_truth import annotated_size
from samcp.structures import RLEMasks

logger = logging.getLogger(__name__)


class MissedImagesEvaluator(DatasetEvaluator):
    """Evaluator that adds an empty prediction for images whose patches could not be generated.

    All objects and pixels of these images therefore count as missed. To skip the images would raise the figures.
    """

    def __init__(self, evaluator: DatasetEvaluator, dataset: str, records: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            evaluator: of the other images of the dataset.
            dataset: its name, for the message.
            records: of the images, each with "failure", the reason.
        """
        self._evaluator = evaluator
        self._dataset = dataset
        self._records = records

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Add the empty predictions in the main process, log their number, and return the results."""
        if comm.is_main_process():
            for record in self._records:
                self._evaluator.process([record], [_empty_prediction(*annotated_size(record))])
            first = self._records[0]
            logger.warning(
                "%s: %d images count as missed, since their patches could not be generated (--strict stops instead); "
                "the first is %s: %s",
                self._dataset,
                len(self._records),
                first["file_name"],
                first["failure"],
            )
        return self._evaluator.evaluate()


def _empty_prediction(height: int, width: int) -> dict[str, Any]:
    """Return the output of the model for an image in which it finds nothing."""
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.zeros(0, 4))
    instances.scores = torch.zeros(0)
    instances.pred_classes = torch.zeros(0, dtype=torch.long)
    instances.pred_masks = RLEMasks([], height, width)
    return {
        "sem_seg": torch.full((height, width), -1),
        "instances": instances,
        "panoptic_seg": (torch.zeros(height, width, dtype=torch.int32), []),
    }
