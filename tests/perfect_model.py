"""Ground truth in the format of model outputs, which evaluators must score with 100."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from proposal_cache import Patches
from samcp import RLEMasks, add_samcp_config
from samcp.data.ground_truth import read_ground_truth, read_label_map, read_panoptic_ids
from samcp.data.image_io import read_image_size
from samcp.evaluation import build_evaluator
from samcp.vocabulary import Vocabulary

Outputs = dict[str, Any]


def perfect_outputs(record: Mapping[str, Any], dataset: str) -> Outputs:
    """Return "instances", "panoptic_seg" and "sem_seg", as far as the record has ground truth for them.

    A crowd is not a predicted segment, but its pixels are labeled in "sem_seg".
    """
    size = read_image_size(record["file_name"])
    count = len(Vocabulary.of_dataset(dataset).names)
    truth = read_ground_truth(record, size, num_classes=count, ignore_label=255)
    masks, classes = truth.things()
    outputs: Outputs = {"instances": instances_of(masks, classes)}
    if "pan_seg_file_name" in record:
        ids, segments = read_panoptic_ids(record["pan_seg_file_name"]), record["segments_info"]
        kept = [
            {name: s[name] for name in ("id", "category_id", "isthing")}
            for s in segments
            if not s["iscrowd"] and s["id"] in ids
        ]
        outputs["panoptic_seg"] = (torch.from_numpy(np.where(np.isin(ids, [s["id"] for s in kept]), ids, 0)), kept)
        labels = np.full(size, -1)
        for segment in segments:
            labels[ids == segment["id"]] = segment["category_id"]
        outputs["sem_seg"] = torch.from_numpy(labels)
    if "sem_seg_file_name" in record:
        labels = read_label_map(record["sem_seg_file_name"])
        outputs["sem_seg"] = torch.from_numpy(np.where(labels == 255, -1, labels))
    return outputs


def instances_of(masks: Patches, classes: np.ndarray, scores: np.ndarray | None = None) -> Instances:
    """Return masks as predicted instances; the default score is 1."""
    size = (masks.height, masks.width)
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(masks.boxes.copy())),
        pred_masks=RLEMasks(masks.coco_rles, *size),
        pred_classes=torch.as_tensor(classes),
        scores=torch.ones(len(masks)) if scores is None else torch.as_tensor(scores, dtype=torch.float32),
    )


def evaluate_truth(
    dataset: str, folder: Path, change: Callable[[Outputs], Outputs] = lambda outputs: outputs, *options: Any
) -> dict[str, dict[str, float]]:
    """Evaluate a dataset's ground truth, modified per image by `change`, with the dataset's evaluators.

    The evaluators write into `folder`; `options` are config keys and values.
    """
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_list(["OUTPUT_DIR", str(folder), *options])
    evaluator = build_evaluator(cfg, dataset)
    evaluator.reset()
    for record in DatasetCatalog.get(dataset):
        evaluator.process([record], [change(perfect_outputs(record, dataset))])
    return evaluator.evaluate()
