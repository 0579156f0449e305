"""Panoptic quality of single images, for all tasks, to find the best and worst of a dataset."""

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from proposal_cache import PatchCache, Patches
from samcp.data.build import Record
from samcp.evaluation.panoptic import compare_all, mean_quality
from samcp.predictor import Predictor
from samcp.regions import Regions, predicted_regions, true_regions
from samcp.result import Result
from samcp.vocabulary import Vocabulary

_BACKGROUND = -1  # class of the rest of an image that has instances only, which is not void


@dataclass(frozen=True, eq=False)
class SegmentedImage:
    """Image of a dataset with its prediction.

    Attributes:
        record: Detectron2's record.
        patches: of the image.
        predicted, truth: regions of the task that the dataset is annotated for.
        quality: PQ in percent, see :func:`image_quality`.
    """

    record: Record
    patches: Patches
    predicted: Regions
    truth: Regions
    quality: float


def segment_images(
    predictor: Predictor, dataset: str, records: Iterable[Record], cache: PatchCache
) -> Iterator[SegmentedImage]:
    """Segment images of a dataset with its vocabulary, and measure each of them.

    As in an evaluation, a class that the encoder of names does not know is not found.

    Args:
        predictor: the model.
        dataset: name of the dataset, for its classes.
        records: from :func:`samcp.data.build.load_records`.
        cache: of their patches.

    Raises:
        DataError: an image or its ground truth cannot be read.
        ValueError: the model has learned embeddings, and not of all the classes.
    """
    vocabulary, metadata = Vocabulary.of_dataset(dataset), MetadataCatalog.get(dataset)
    for record in records:
        patches = cache[record["key"]]
        result = predictor(record["file_name"], patches).segment(vocabulary, strict=False)
        predicted = predicted_regions(_prediction(result, record))
        truth = true_regions(record, (patches.height, patches.width), metadata)
        yield SegmentedImage(record, patches, predicted, truth, image_quality(predicted, truth))


def by_quality(images: Iterable[SegmentedImage]) -> list[SegmentedImage]:
    """Return the images from the lowest to the highest quality, without those of which it is undefined."""
    return sorted((image for image in images if not math.isnan(image.quality)), key=lambda image: image.quality)


def image_quality(predicted: Regions, truth: Regions) -> float:
    """Return the PQ of one image in percent, by panopticapi: the mean over the classes in prediction or truth.

    Each class of a semantic segmentation is one segment. Where instances overlap, the pixel is the smaller one's. NaN
    if neither has a class.
    """
    with tempfile.TemporaryDirectory(prefix="image_quality") as folder:
        pair = _write(truth, Path(folder, "truth.png")), _write(predicted, Path(folder, "predicted.png"))
        classes = sorted({*truth.classes.tolist(), *predicted.classes.tolist()})
        categories = [{"id": c} for c in (_BACKGROUND, *classes)]
        statistics = compare_all([pair], folder, folder, categories)
    return 100 * mean_quality(statistics, {c: {} for c in classes}, None)["pq"] if classes else math.nan


def _prediction(result: Result, record: Record) -> dict[str, Any]:
    """Return the segmentation of the task that a record is annotated for."""
    if "pan_seg_file_name" in record:
        return {"panoptic_seg": result.panoptic}
    if "sem_seg_file_name" in record:
        return {"sem_seg": result.semantic}
    instances = result.instances
    return {"instances": instances[instances.scores > result.inference.score_threshold]}


def _write(regions: Regions, path: Path) -> dict[str, Any]:
    """Write the PNG of COCO's panoptic format; return the annotation of the image."""
    ids = np.zeros((regions.masks.height, regions.masks.width), np.uint32)
    if not regions.whole:
        ids[:] = len(regions) + 1
    for i in np.argsort(-regions.masks.areas, kind="stable").tolist():
        ids[regions.masks.decode([i])[0]] = i + 1
    Image.fromarray(id2rgb(ids)).save(path, compress_level=1)
    visible, areas = np.unique(ids[ids > 0], return_counts=True)
    classes, crowds = [*regions.classes.tolist(), _BACKGROUND], [*regions.is_crowd.tolist(), False]
    segments = [
        {"id": int(i), "category_id": classes[i - 1], "area": int(area), "iscrowd": int(crowds[i - 1])}
        for i, area in zip(visible, areas, strict=True)
    ]
    return {"image_id": path.stem, "file_name": path.name, "segments_info": segments}
