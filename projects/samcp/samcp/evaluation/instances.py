"""Box and mask AP of instances with RLE masks."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from proposal_cache.rle import to_json
from samcp.data.validation.annotations import require_instances, valid_mask
from samcp.errors import DataError


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for RLE masks, which it does not decode, on instance and panoptic datasets.

    The thing_classes of a panoptic dataset list things and stuff; only things are evaluated. COCOEvaluator expects the
    ids of things to be 0..K-1, which is not so on ADE20K, so each thing is passed by its rank among the things.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Raises:
            DataError: the dataset's json_file cannot be read or has an invalid entry.
        """
        metadata = MetadataCatalog.get(dataset_name)
        try:
            require_instances(metadata.json_file, measures=True)
        except DataError as error:
            raise DataError(f"{error}; fix it, or skip the AP by MODEL.SAMCP.TEST.INSTANCE_ON False") from error
        super().__init__(dataset_name, tasks=("bbox", "segm"), output_dir=output_dir)
        sizes = {image["id"]: (image["height"], image["width"]) for image in self._coco_api.dataset["images"]}
        for i, annotation in enumerate(self._coco_api.dataset["annotations"], start=1):
            # COCOeval takes a match with the annotation 0 for none, and reads annotations with equal ids as one.
            annotation["id"] = i
            # pycocotools reads polygons as boxes if the first one has two points.
            size = sizes[annotation["image_id"]]
            annotation["segmentation"] = to_json(valid_mask(annotation["segmentation"], *size), *size)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()
        class_of = metadata.thing_dataset_id_to_contiguous_id
        things = sorted(class_of.values())
        self._rank = {thing: rank for rank, thing in enumerate(things)}
        self._metadata = Metadata(
            name=dataset_name,
            thing_classes=[metadata.thing_classes[thing] for thing in things],
            thing_dataset_id_to_contiguous_id={i: self._rank[thing] for i, thing in class_of.items()},
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Return COCO's metrics; the tables that pycocotools prints are in the log too, by Detectron2."""
        with contextlib.redirect_stdout(io.StringIO()):
            return super().evaluate(*args, **kwargs)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add the predictions of a batch.

        Args:
            inputs: one dict per image, with "image_id".
            outputs: one dict per image, with "instances": pred_boxes, scores, pred_classes and pred_masks (RLEMasks).
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            results = to_coco_results(output["instances"].to("cpu"), image_id)
            for result in results:
                result["category_id"] = self._rank[result["category_id"]]
            self._predictions.append({"image_id": image_id, "instances": results})


def to_coco_results(instances: Instances, image_id: int | str) -> list[dict[str, Any]]:
    """Return COCO's results of one image, with its RLE masks unchanged."""
    unmasked = Instances(instances.image_size, **{k: v for k, v in instances.get_fields().items() if k != "pred_masks"})
    results = instances_to_coco_json(unmasked, image_id)
    for result, rle in zip(results, instances.pred_masks.rles, strict=True):
        counts = rle["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        result["segmentation"] = {"size": list(rle["size"]), "counts": text}
    return results
