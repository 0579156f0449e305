"""Mean IoU of label maps."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from samcp.data.ground_truth import check_labels, read_label_map, read_panoptic_ids
from samcp.errors import DataError
from samcp.regions import label_map
from samcp.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """Metrics of Detectron2's SemSegEvaluator; equal to them if every pixel has a prediction. Three differences:

    - An unlabeled pixel (-1) is an error of its ground-truth class. Detectron2 would skip it, so that a model could
      raise its score by leaving pixels unlabeled.
    - The prediction may be a label map, so that no C x H x W scores are needed.
    - The ground truth of a panoptic dataset without label maps is its panoptic PNGs; a crowd region has its class.
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
        # (prediction, ground truth); the last row counts unlabeled pixels. Void ground truth is not counted.
        self._confusion = np.zeros((len(self._names) + 1, len(self._names)), dtype=np.int64)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add the predictions of a batch to the confusion matrix.

        Args:
            inputs: one dict per image, with "file_name".
            outputs: one dict per image, with "sem_seg": (H, W) labels, -1 if unlabeled, or (C, H, W) scores.

        Raises:
            DataError: prediction and ground truth differ in size, or the ground truth cannot be read.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            predicted = label_map(output["sem_seg"])
            truth = self._read_truth(self._records[sample["file_name"]])
            if predicted.shape != truth.shape:
                raise DataError(
                    f"{sample['file_name']}: the prediction has {predicted.shape} pixels, but its ground truth "
                    f"{truth.shape}"
                )
            self._confusion += self._count(predicted, truth)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return mIoU, fwIoU, mACC, pACC and, per class, IoU-NAME and ACC-NAME, in percent.

        Returns:
            {"sem_seg": metric -> value}, NaN for a class without ground truth; None on ranks other than 0.
        """
        confusions = comm.gather(self._confusion)
        if not comm.is_main_process():
            return None
        metrics = self._metrics(np.sum(confusions, axis=0))
        logger.info("Semantic segmentation: %s", {name: round(value, 2) for name, value in metrics.items()})
        return OrderedDict(sem_seg=metrics)

    def _read_truth(self, record: Mapping[str, Any]) -> np.ndarray:
        """Return (H, W) class ids, -1 for void pixels."""
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
        """Return the confusion matrix (C + 1, C) of one image."""
        known = truth >= 0
        rows, columns = self._confusion.shape
        rows_hit = np.where(predicted[known] < 0, rows - 1, predicted[known])
        return np.bincount(rows_hit * columns + truth[known], minlength=rows * columns).reshape(rows, columns)

    def _metrics(self, confusion: np.ndarray) -> dict[str, float]:
        hits = np.diagonal(confusion).astype(float)
        in_truth, in_prediction = confusion.sum(axis=0), confusion[:-1].sum(axis=1)
        present = in_truth > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(present, hits / (in_truth + in_prediction - hits), np.nan)
            accuracy = np.where(present, hits / in_truth, np.nan)
            frequency = in_truth / in_truth.sum()
            metrics = {
                "mIoU": _mean(iou[present]),
                "fwIoU": float(np.sum((frequency * iou)[present])),
                "mACC": _mean(accuracy[present]),
                "pACC": float(hits.sum() / in_truth.sum()),
            }
        metrics |= {f"IoU-{name}": float(value) for name, value in zip(self._names, iou, strict=True)}
        metrics |= {f"ACC-{name}": float(value) for name, value in zip(self._names, accuracy, strict=True)}
        return {name: 100 * value for name, value in metrics.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
