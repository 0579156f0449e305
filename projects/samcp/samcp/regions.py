"""Labelled regions of an image, in one form for predictions and ground truths of all tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from proposal_cache import Patches
from proposal_cache.rle import encode_labels
from samcp.data.ground_truth import read_ground_truth

_MATCH_IOU = 0.5  # a predicted and a true instance match if their IoU exceeds it


@dataclass(frozen=True, eq=False)
class Regions:
    """Labelled regions of one image, R in all; instances may overlap.

    Attributes:
        masks: R masks at the size of the image.
        classes: (R,) int64 class ids, things and stuff in one numbering.
        is_thing, is_crowd: (R,) bool.
        whole: whether the regions are of the whole image, so that other pixels are unlabelled. The rest of an image
            with instances only is its background.
        scores: (R,) or None if there are none.
    """

    masks: Patches
    classes: np.ndarray
    is_thing: np.ndarray
    is_crowd: np.ndarray
    whole: bool
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def instances(self) -> np.ndarray:
        """Indices of the instances, large ones first."""
        index = np.flatnonzero(self.is_thing & ~self.is_crowd)
        return index[np.argsort(-self.masks.areas[index], kind="stable")]


def predicted_regions(prediction: Mapping[str, Any]) -> Regions:
    """Return the regions of a model's panoptic segmentation, else of its semantic segmentation, else its instances.

    Args:
        prediction: outputs of :meth:`samcp.SAMCP.forward` for one image.

    Raises:
        ValueError: the prediction has none of the three.
    """
    if "panoptic_seg" in prediction:
        canvas, infos = prediction["panoptic_seg"]
        ids, masks = _masks(canvas.cpu().numpy())
        segments = {info["id"]: info for info in infos}
        kept = [i for i, number in enumerate(ids) if number in segments]
        listed = [segments[ids[i]] for i in kept]
        scores = [info["score"] for info in listed if "score" in info]
        return _regions(
            masks.select(kept),
            [info["category_id"] for info in listed],
            is_thing=[bool(info["isthing"]) for info in listed],
            whole=True,
            scores=scores if len(scores) == len(listed) else None,
        )
    if "sem_seg" in prediction:
        ids, masks = _masks(label_map(prediction["sem_seg"]))
        known = [i for i, label in enumerate(ids) if label >= 0]
        return _regions(masks.select(known), [ids[i] for i in known], is_thing=[False] * len(known), whole=True)
    if "instances" in prediction:
        instances = prediction["instances"].to("cpu")
        rles = [rle["counts"] for rle in instances.pred_masks.rles]
        classes = instances.pred_classes.tolist()
        height, width = instances.image_size
        return _regions(
            Patches.from_rles(height, width, rles),
            classes,
            is_thing=[True] * len(classes),
            whole=False,
            scores=instances.scores.tolist(),
        )
    raise ValueError(f"the prediction has {sorted(prediction)}; it needs one of panoptic_seg, sem_seg and instances")


def label_map(prediction: Tensor) -> NDArray[np.int64]:
    """Return (H, W) labels from labels (H, W) or scores (C, H, W); -1 for a pixel without a positive score."""
    if prediction.ndim == 3:
        score, label = prediction.max(dim=0)
        prediction = torch.where(score > 0, label, -1)
    return prediction.cpu().numpy().astype(np.int64)


def true_regions(record: Mapping[str, Any], size: Sequence[int], metadata: Metadata) -> Regions:
    """Return the annotated regions of a Detectron2 record.

    Args:
        record: as in :func:`read_ground_truth`.
        size: (height, width) of the image.
        metadata: of the dataset, for the number of classes and ignore_label.

    Raises:
        DataError: as :func:`read_ground_truth`.
    """
    height, width = size
    truth = read_ground_truth(
        record, (height, width), num_classes=len(class_names(metadata)), ignore_label=metadata.get("ignore_label", 255)
    )
    seen = np.flatnonzero(truth.masks.areas > 0)
    whole = "pan_seg_file_name" in record or "sem_seg_file_name" in record
    return Regions(truth.masks.select(seen), truth.classes[seen], truth.is_thing[seen], truth.is_crowd[seen], whole)


def class_names(metadata: Metadata) -> list[str]:
    """Return the names of a dataset's classes, things and stuff in one numbering."""
    return list(metadata.get("stuff_classes") or metadata.get("thing_classes"))


def match_instances(regions: Regions, truth: Regions) -> list[tuple[int, int]]:
    """Match instances of a class, one to one, by the Hungarian algorithm on their IoU if it exceeds 0.5.

    Returns:
        Pairs of an index of `regions` and an index of `truth`.
    """
    ours, theirs = regions.instances, truth.instances
    iou = regions.masks.select(ours).iou(truth.masks.select(theirs))
    iou[(iou <= _MATCH_IOU) | (regions.classes[ours][:, None] != truth.classes[theirs])] = 0
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return [(int(ours[i]), int(theirs[j])) for i, j in zip(rows, columns, strict=True) if iou[i, j] > 0]


def _masks(labels: np.ndarray) -> tuple[list[int], Patches]:
    ids, rles = encode_labels(labels)
    return [int(i) for i in ids], Patches.from_rles(labels.shape[0], labels.shape[1], rles)


def _regions(
    masks: Patches, classes: list[int], *, is_thing: list[bool], whole: bool, scores: list[float] | None = None
) -> Regions:
    return Regions(
        masks,
        np.asarray(classes, np.int64),
        np.asarray(is_thing, bool),
        np.zeros(len(classes), bool),
        whole,
        None if scores is None else np.asarray(scores, np.float64),
    )
