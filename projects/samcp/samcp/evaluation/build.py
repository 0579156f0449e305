"""Construction of the evaluators of a dataset."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from samcp.errors import UsageError
from samcp.evaluation.cityscapes import CityscapesAPEvaluator
from samcp.evaluation.instances import InstanceEvaluator
from samcp.evaluation.missed import MissedImagesEvaluator
from samcp.evaluation.panoptic import PanopticEvaluator
from samcp.evaluation.prompts import PromptEvaluator
from samcp.evaluation.semantic import SemanticEvaluator

_PANOPTIC = ("coco_panoptic_seg", "cityscapes_panoptic_seg")


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None, *, missed: Sequence[Mapping[str, Any]] = ()
) -> DatasetEvaluator:
    """Build the evaluators for a dataset's evaluator_type and the tasks that are switched on.

    Args:
        cfg: MODEL.SAMCP.TEST.{SEMANTIC,INSTANCE,PANOPTIC,PROMPTS}_ON select the tasks.
        dataset_name: a registered dataset with an evaluator_type of COCO, ADE20K or Cityscapes.
        output_folder: for instances in COCO's format of results; default OUTPUT_DIR/inference, for the oracle its
            subfolder ``oracle``, and in these the subfolder ``dataset_name`` if DATASETS.TEST names several datasets.
        missed: records of images without patches, from :func:`samcp.data.build.failed_records`, which count as missed
            in all tasks but the accuracy of prompts, which is per patch.

    Raises:
        UsageError: the evaluator_type is unknown, none of its tasks is on, or one cannot run on several machines.
        DataError: a required package is not installed, or the dataset's json_file cannot be read.
    """
    output_folder = output_folder or _default_folder(cfg, dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    kind, tasks = metadata.get("evaluator_type"), cfg.MODEL.SAMCP.TEST
    evaluators: list[DatasetEvaluator] = []
    if kind in (*_PANOPTIC, "sem_seg", "cityscapes_sem_seg") and tasks.SEMANTIC_ON:
        evaluators.append(SemanticEvaluator(dataset_name))
    if kind in ("coco_panoptic_seg", "coco") and tasks.INSTANCE_ON and metadata.get("json_file"):
        evaluators.append(InstanceEvaluator(dataset_name, output_dir=output_folder))
    if kind == "cityscapes_panoptic_seg" and tasks.INSTANCE_ON:
        evaluators.append(CityscapesAPEvaluator(dataset_name))
    if kind in _PANOPTIC and tasks.PANOPTIC_ON:
        evaluators.append(PanopticEvaluator(dataset_name))
    if missed and evaluators:
        evaluators = [MissedImagesEvaluator(DatasetEvaluators(evaluators), dataset_name, missed)]
    if tasks.PROMPTS_ON:
        top = cfg.TEST.DETECTIONS_PER_IMAGE
        evaluators.append(PromptEvaluator(dataset_name, threshold=tasks.PAIR_THRESHOLD, top_instances=top))
    if not evaluators:
        raise UsageError(
            f"nothing to evaluate on {dataset_name!r}, which has evaluator_type {kind!r}: supported are "
            "coco_panoptic_seg, cityscapes_panoptic_seg, sem_seg, cityscapes_sem_seg and coco, and MODEL.SAMCP.TEST "
            "must switch on one of their tasks"
        )
    return DatasetEvaluators(evaluators)


def _default_folder(cfg: CfgNode, dataset_name: str) -> str:
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", *(["oracle"] if cfg.TEST.ORACLE else []))
    return os.path.join(folder, dataset_name) if len(cfg.DATASETS.TEST) > 1 else folder
