"""Box and mask AP of instances whose masks are RLEs already."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator without decoding masks, and for panoptic datasets too.

    Those list the names of things and stuff together as thing_classes; only things take part here.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        super().__init__(dataset_name, tasks=("bbox", "segm"), output_dir=output_dir)
        names = MetadataCatalog.get(dataset_name).thing_classes
        things = MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id.values()
        self._thing_names = [names[i] for i in sorted(things)]

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take images, each with "instances": pred_boxes, scores, pred_classes and pred_masks (RLEMasks)."""
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            results = _to_coco_json(output["instances"].to("cpu"), image_id)
            self._predictions.append({"image_id": image_id, "instances": results})

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> "OrderedDict[str, float] | dict[str, float]":
        return super()._derive_coco_results(coco_eval, iou_type, class_names=self._thing_names)


def _to_coco_json(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """COCO results of one image, its masks being RLEs as they are."""
    unmasked = Instances(instances.image_size, **{k: v for k, v in instances.get_fields().items() if k != "pred_masks"})
    results = instances_to_coco_json(unmasked, image_id)
    for result, rle in zip(results, instances.pred_masks.rles, strict=True):
        counts = rle["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        result["segmentation"] = {"size": list(rle["size"]), "counts": text}
    return results
