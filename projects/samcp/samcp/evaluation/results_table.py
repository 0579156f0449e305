"""Table of evaluation results, in the column order of the paper's tables."""

import math
from collections.abc import Mapping

from tabulate import tabulate

# Column -> (task, metric) of Detectron2's results.
_COLUMNS = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ_th": ("panoptic_seg", "PQ_th"),
    "PQ_st": ("panoptic_seg", "PQ_st"),
    "SQ": ("panoptic_seg", "SQ"),
    "RQ": ("panoptic_seg", "RQ"),
    "AP": ("segm", "AP"),
    "AP50": ("segm", "AP50"),
    "AP75": ("segm", "AP75"),
    "AP box": ("bbox", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
    "Prompt I": ("prompt_1", "accuracy"),
    "Prompt II F1": ("prompt_2", "F1"),
}


def format_results(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Format results as a Markdown table with one row per dataset.

    Metrics that were not evaluated have no column; NaN and missing values are printed as "-".

    Args:
        results: name of the row -> the dict that a DatasetEvaluator returns, task -> metric -> value.
    """
    columns = [
        column
        for column, (task, metric) in _COLUMNS.items()
        if any(metric in r.get(task, {}) for r in results.values())
    ]
    rows = [[name, *(_cell(tasks, *_COLUMNS[column]) for column in columns)] for name, tasks in results.items()]
    return tabulate(rows, headers=["", *columns], tablefmt="pipe", floatfmt=".1f", missingval="-")


def _cell(tasks: Mapping[str, Mapping[str, float]], task: str, metric: str) -> float | None:
    value = tasks.get(task, {}).get(metric)
    return None if value is None or math.isnan(value) else value
