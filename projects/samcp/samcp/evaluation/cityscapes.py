"""Instance AP on Cityscapes."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation import CityscapesInstanceEvaluator
from detectron2.utils import comm

from samcp.errors import DataError, UsageError


class CityscapesAPEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's CityscapesInstanceEvaluator for RLE masks; its ground truth are the files of the release."""

    def __init__(self, dataset_name: str) -> None:
        """
        Raises:
            UsageError: the processes run on several machines; all of them write into one temporary folder.
            DataError: cityscapesscripts is not installed.
        """
        if comm.get_local_size() < comm.get_world_size():
            raise UsageError(
                f"the AP of {dataset_name} cannot be evaluated on several machines: evaluate on one by --eval-only, "
                "and skip the AP here by MODEL.SAMCP.TEST.INSTANCE_ON False"
            )
        if importlib.util.find_spec("cityscapesscripts") is None:
            raise DataError(
                f"the AP of {dataset_name} needs the package cityscapesscripts, which is not installed: pip install "
                "cityscapesscripts, or skip the AP by MODEL.SAMCP.TEST.INSTANCE_ON False"
            )
        super().__init__(dataset_name)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add the predictions of a batch.

        Args:
            inputs: one dict per image, with "file_name".
            outputs: one dict per image, with "instances": scores, pred_classes and pred_masks (RLEMasks).
        """
        for sample, output in zip(inputs, outputs, strict=True):
            instances = output["instances"][:]
            instances.pred_masks = list(instances.pred_masks)  # decoded for one image at a time
            super().process([sample], [{"instances": instances}])

    def evaluate(self) -> Any:
        """Return AP and AP50 of things in percent; None on ranks other than 0."""
        import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as official

        write, folder = official.writeDict2JSON, self._temp_dir
        # The official script writes its list of matches into the current folder; redirect it to the temporary one.
        official.writeDict2JSON = lambda content, path: write(content, os.path.join(folder, os.path.basename(path)))
        try:
            return super().evaluate()
        finally:
            official.writeDict2JSON = write
