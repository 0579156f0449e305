"""Mean IoU of label maps, against label PNGs or, where there are none, panoptic PNGs."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from samcp.data.ground_truth import check_labels, read_label_map, read_panoptic_ids
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """The figures of Detectron2's SemSegEvaluator, and equal to them where every pixel has a prediction.

    Three things are different. A pixel without a prediction (-1), which a model of patches has, is a miss of its class;
    Detectron2 would leave it out and so praise a model for staying silent. The prediction may be a label map, so that
    no C x H x W scores need to exist. And a panoptic dataset without label maps of its own is judged on its panoptic
    PNGs: things and stuff alike, a crowd region as its class.
    """

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: a registered dataset whose records have "sem_seg_file_name" or "pan_seg_file_name".
        """
        self._names = Vocabulary.of_dataset(dataset_name).names
        self._ignore_label = MetadataCatalog.get(dataset_name).get("ignore_label", 255)
        self._records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}

    def reset(self) -> None:
        # Rows are predictions, the last one for none; columns are ground truth. Unknown ground truth is not counted.
        self._confusion = np.zeros((len(self._names) + 1, len(self._names)), dtype=np.int64)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count images, each with "sem_seg": (H, W) labels with -1 for none, or (C, H, W) scores."""
        for sample, output in zip(inputs, outputs, strict=True):
            predicted = _label_map(output["sem_seg"])
            truth = self._read_truth(self._records[sample["file_name"]])
            if predicted.shape != truth.shape:
                raise DataError(
                    f"{sample['file_name']}: predicted {predicted.shape} pixels for a truth of {truth.shape}"
                )
            self._confusion += self._count(predicted, truth)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """mIoU, fwIoU, mACC, pACC and, per class, IoU-NAME and ACC-NAME in percent; a class not in the data has NaN."""
        confusions = comm.gather(self._confusion)
        if not comm.is_main_process():
            return None
        figures = self._figures(np.sum(confusions, axis=0))
        logger.info("Semantic segmentation: %s", {name: round(value, 2) for name, value in figures.items()})
        return OrderedDict(sem_seg=figures)

    def _read_truth(self, record: Mapping[str, Any]) -> np.ndarray:
        """(H, W) class ids, -1 where unknown."""
        if "sem_seg_file_name" in record:
            labels = read_label_map(record["sem_seg_file_name"])
            present = np.unique(labels).tolist()
            check_labels(record["sem_seg_file_name"], present, len(self._names), self._ignore_label)
            return np.where(labels == self._ignore_label, -1, labels)
        ids, segments = read_panoptic_ids(record["pan_seg_file_name"]), record["segments_info"]
        present, inverse = np.unique(ids, return_inverse=True)
        class_of = {segment["id"]: segment["category_id"] for segment in segments}
        return np.array([class_of.get(i, -1) for i in present.tolist()])[inverse].reshape(ids.shape)

    def _count(self, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """The confusion (C + 1, C) of one image."""
        known = truth >= 0
        rows, columns = self._confusion.shape
        rows_hit = np.where(predicted[known] < 0, rows - 1, predicted[known])
        return np.bincount(rows_hit * columns + truth[known], minlength=rows * columns).reshape(rows, columns)

    def _figures(self, confusion: np.ndarray) -> dict[str, float]:
        hits = np.diagonal(confusion).astype(float)
        in_truth, in_prediction = confusion.sum(axis=0), confusion[:-1].sum(axis=1)
        present = in_truth > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(present, hits / (in_truth + in_prediction - hits), np.nan)
            accuracy = np.where(present, hits / in_truth, np.nan)
            frequency = in_truth / in_truth.sum()
            figures = {
                "mIoU": _mean(iou[present]),
                "fwIoU": float(np.sum((frequency * iou)[present])),
                "mACC": _mean(accuracy[present]),
                "pACC": float(hits.sum() / in_truth.sum()),
            }
        figures |= {f"IoU-{name}": float(value) for name, value in zip(self._names, iou, strict=True)}
        figures |= {f"ACC-{name}": float(value) for name, value in zip(self._names, accuracy, strict=True)}
        return {name: 100 * value for name, value in figures.items()}


def _label_map(prediction: torch.Tensor) -> np.ndarray:
    """(H, W) labels of labels (H, W) or scores (C, H, W); a pixel that no class scores on has none (-1)."""
    if prediction.ndim == 3:
        score, label = prediction.max(dim=0)
        prediction = torch.where(score > 0, label, -1)
    return prediction.cpu().numpy().astype(np.int64)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
