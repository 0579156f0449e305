"""Tables of evaluation results, in the column order of the paper's tables."""

import math
from collections.abc import Mapping

from tabulate import tabulate

# Name -> (task, metric) of Detectron2's results.
METRICS = {
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
        column for column, (task, metric) in METRICS.items() if any(metric in r.get(task, {}) for r in results.values())
    ]
    rows = [[name, *(_cell(tasks, *METRICS[column]) for column in columns)] for name, tasks in results.items()]
    return tabulate(rows, headers=["", *columns], tablefmt="pipe", floatfmt=".1f", missingval="-")


def compare_with_oracle(
    model: Mapping[str, Mapping[str, float]], oracle: Mapping[str, Mapping[str, float]]
) -> list[list[str]]:
    """Compare the results of a model with those of the oracle.

    Args:
        model, oracle: results of a DatasetEvaluator, task -> metric -> percent. Metrics that one lacks are skipped.

    Returns:
        Rows of a table: metric, model, oracle, and model / oracle; "–" for an undefined value.
    """
    table = []
    for name, (task, metric) in METRICS.items():
        ours, bound = model.get(task, {}).get(metric), oracle.get(task, {}).get(metric)
        if ours is None or bound is None:
            continue
        share = f"{100 * ours / bound:.0f} %" if bound > 0 and not math.isnan(ours) else "–"
        table.append([name, *("–" if math.isnan(value) else f"{value:.1f}" for value in (ours, bound)), share])
    return table


def _cell(tasks: Mapping[str, Mapping[str, float]], task: str, metric: str) -> float | None:
    value = tasks.get(task, {}).get(metric)
    return None if value is None or math.isnan(value) else value
