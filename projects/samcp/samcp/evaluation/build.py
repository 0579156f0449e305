"""Which evaluators judge a dataset."""

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from samcp.errors import UsageError
from samcp.evaluation.cityscapes import CityscapesAPEvaluator
from samcp.evaluation.instances import InstanceEvaluator
from samcp.evaluation.panoptic import PanopticEvaluator
from samcp.evaluation.prompts import PromptEvaluator
from samcp.evaluation.semantic import SemanticEvaluator

_PANOPTIC = ("coco_panoptic_seg", "cityscapes_panoptic_seg")


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluators of a dataset's evaluator_type, for the tasks that are switched on.

    Args:
        cfg: MODEL.SAMCP.TEST.{SEMANTIC,INSTANCE,PANOPTIC}_ON choose the tasks.
        dataset_name: registered, with an evaluator_type that Detectron2 has for COCO, ADE20K or Cityscapes.
        output_folder: for results in COCO's formats; default OUTPUT_DIR/inference, and where DATASETS.TEST names
            several datasets a folder of this one's name in it.

    Raises:
        ValueError: an unknown evaluator_type, or none of its tasks is on.
        DataError: something that evaluates the dataset is not installed, or its json_file cannot be read.
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
        evaluators.append(PanopticEvaluator(dataset_name, output_folder))
    if tasks.PROMPTS_ON:
        evaluators.append(PromptEvaluator(dataset_name, threshold=tasks.PAIR_THRESHOLD))
    if not evaluators:
        raise UsageError(
            f"nothing to evaluate on {dataset_name!r}, which has evaluator_type {kind!r}: known are coco_panoptic_seg, "
            "cityscapes_panoptic_seg, sem_seg, cityscapes_sem_seg and coco, and MODEL.SAMCP.TEST must have one of "
            "their tasks on"
        )
    return DatasetEvaluators(evaluators)


def _default_folder(cfg: CfgNode, dataset_name: str) -> str:
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return os.path.join(folder, dataset_name) if len(cfg.DATASETS.TEST) > 1 else folder
