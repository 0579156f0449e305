"""Panoptic quality."""

import contextlib
import io
import itertools
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from panopticapi.evaluation import PQStat, pq_compute_single_core
from tabulate import tabulate

from samcp.data.ground_truth import read_panoptic_ids
from samcp.data.validation.annotations import require_panoptic
from samcp.errors import DataError

logger = logging.getLogger(__name__)

_METRICS = ("pq", "sq", "rq")
_GROUPS = {"": None, "_th": True, "_st": False}  # suffix of the metric -> panopticapi's "isthing"


class PanopticEvaluator(COCOPanopticEvaluator):
    """Detectron2's COCOPanopticEvaluator, also for datasets without things or without stuff.

    panopticapi divides by the number of categories found, and fails after the last image with a ZeroDivisionError if
    there are no things or no stuff. Here the average of such a group is NaN; all other results equal panopticapi's.

    Areas of segments are those of the PNGs; panopticapi would use "area" of the json, also if it is wrong.

    As in panopticapi, a pixel is void if its id in the PNG is 0, but not if the json does not list its id: a segment
    predicted there is a false positive.
    """

    def __init__(self, dataset_name: str) -> None:
        """
        Raises:
            DataError: the dataset's panoptic_json cannot be read or has an invalid entry.
        """
        super().__init__(dataset_name)
        try:
            require_panoptic(self._metadata.panoptic_json)
        except DataError as error:
            raise DataError(f"{error}; fix it, or skip the PQ by MODEL.SAMCP.TEST.PANOPTIC_ON False") from error

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return PQ, SQ and RQ in percent for all categories, things (_th) and stuff (_st); None on ranks other than 0.

        "PQ-NAME" is the PQ of each category.

        Raises:
            DataError: the dataset's json lists images that were not evaluated, or a PNG is missing or damaged.
        """
        comm.synchronize()
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        with open(self._metadata.panoptic_json) as file:
            truth = json.load(file)
        predictions = {prediction["image_id"]: prediction for prediction in itertools.chain(*gathered)}
        statistics = self._compare(truth, predictions)
        categories = {category["id"]: category for category in truth["categories"]}
        metrics: dict[str, float] = {}
        for suffix, things in _GROUPS.items():
            averages = mean_quality(statistics, categories, things)
            metrics |= {f"{name.upper()}{suffix}": 100 * averages[name] for name in _METRICS}
        metrics |= {
            f"PQ-{category['name']}": _class_quality(statistics, category["id"]) for category in truth["categories"]
        }
        logger.info("Panoptic quality:\n%s", _table(metrics))
        return OrderedDict(panoptic_seg=metrics)

    def _compare(self, truth: Mapping[str, Any], predictions: Mapping[int, dict[str, Any]]) -> PQStat:
        missing = [a["image_id"] for a in truth["annotations"] if a["image_id"] not in predictions]
        if missing:
            raise DataError(
                f"{self._metadata.panoptic_json}: {len(missing)} of its images have no prediction, first {missing[0]}; "
                "the dataset and its json must list the same images"
            )
        with tempfile.TemporaryDirectory(prefix="panoptic_eval") as folder:
            pairs = []
            for i, annotation in enumerate(truth["annotations"]):
                # Named by number: images in different folders may have the same name.
                prediction = {**predictions[annotation["image_id"]], "file_name": f"{i}.png"}
                with open(os.path.join(folder, prediction["file_name"]), "wb") as file:
                    file.write(prediction["png_string"])
                pairs.append((annotation, prediction))
            return compare_all(pairs, self._metadata.panoptic_root, folder, truth["categories"])


def compare_all(
    pairs: Sequence[tuple[Any, Any]], truth_folder: str, folder: str, categories: Sequence[Mapping[str, Any]]
) -> PQStat:
    """Run panopticapi's comparison in threads, in which numpy and Pillow release the GIL.

    panopticapi's own version forks processes, which may deadlock if this process already has threads, as with PyTorch.
    """
    by_id = {category["id"]: category for category in categories}
    cores = os.cpu_count() or 1
    statistics = PQStat()
    with contextlib.redirect_stdout(io.StringIO()), ThreadPoolExecutor(cores) as pool:
        parts = [pool.submit(_compare_some, i, pairs[i::cores], truth_folder, folder, by_id) for i in range(cores)]
        for part in parts:
            statistics += part.result()
    return statistics


def _compare_some(
    number: int, pairs: Sequence[tuple[Any, Any]], truth_folder: str, folder: str, by_id: Mapping[int, Any]
) -> PQStat:
    checked = [(_with_areas(truth, os.path.join(truth_folder, truth["file_name"])), found) for truth, found in pairs]
    return pq_compute_single_core(number, checked, truth_folder, folder, by_id)


def _with_areas(annotation: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a panoptic annotation with the areas of its segments in the PNG."""
    ids, areas = np.unique(read_panoptic_ids(path), return_counts=True)
    area_of = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    segments = [{**segment, "area": area_of.get(segment["id"], 0)} for segment in annotation["segments_info"]]
    return {**annotation, "segments_info": segments}


def mean_quality(statistics: PQStat, categories: Mapping[int, Any], things: bool | None) -> dict[str, float]:
    """Return panopticapi's average of one group, NaN if it has no category."""
    try:
        return statistics.pq_average(categories, isthing=things)[0]
    except ZeroDivisionError:
        return dict.fromkeys(_METRICS, float("nan"))


def _class_quality(statistics: PQStat, category: int) -> float:
    """Return the PQ of one category in percent, NaN if it is neither annotated nor predicted."""
    found = statistics[category]
    segments = found.tp + (found.fp + found.fn) / 2
    return 100 * found.iou / segments if segments else float("nan")


def _table(metrics: Mapping[str, float]) -> str:
    rows = [
        [name, *(metrics[f"{metric.upper()}{suffix}"] for metric in _METRICS)]
        for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
    ]
    return tabulate(rows, headers=["", "PQ", "SQ", "RQ"], tablefmt="pipe", floatfmt=".2f")
