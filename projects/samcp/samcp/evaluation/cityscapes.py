"""Cityscapes' own AP of instances."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation import CityscapesInstanceEvaluator

from samcp.errors import DataError


class CityscapesAPEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's CityscapesInstanceEvaluator for masks that are RLEs; it judges against the release's own files."""

    def __init__(self, dataset_name: str) -> None:
        """
        Raises:
            DataError: cityscapesscripts, which computes the AP, is not installed.
        """
        if importlib.util.find_spec("cityscapesscripts") is None:
            raise DataError(
                f"the AP of {dataset_name} is computed by cityscapesscripts, which is not installed: pip install "
                "cityscapesscripts, or go without it by MODEL.SAMCP.TEST.INSTANCE_ON False"
            )
        super().__init__(dataset_name)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take images, each with "instances": scores, pred_classes and pred_masks (RLEMasks)."""
        for sample, output in zip(inputs, outputs, strict=True):
            instances = output["instances"][:]
            instances.pred_masks = list(instances.pred_masks)  # decoded, an image at a time
            super().process([sample], [{"instances": instances}])

    def evaluate(self) -> Any:
        """AP and AP50 of things, in percent; nothing from workers other than the first."""
        import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as official

        write, folder = official.writeDict2JSON, self._temp_dir
        # It would leave its list of matches in the folder that the user is in.
        official.writeDict2JSON = lambda content, path: write(content, os.path.join(folder, os.path.basename(path)))
        try:
            return super().evaluate()
        finally:
            official.writeDict2JSON = write
