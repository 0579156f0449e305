"""Plots: their curves have the values of the data."""

import json

import numpy as np
import pytest
from matplotlib.axes import Axes

from samcp.evaluation.patch_quality import ObjectFits
from samcp.visualization import figures
from samcp.visualization.report import read_metrics

METRICS = [
    {"iteration": 19, "total_loss": 3.0, "loss_cls": 1.0, "loss_cls_0": 2.0, "lr": 0.1},
    {"iteration": 39, "total_loss": 2.0, "loss_cls": 0.5, "loss_cls_0": 1.5, "lr": 0.1},
    {"iteration": 39, "panoptic_seg/PQ": 40.0, "b/segm/AP": 20.0, "bbox/APs": 3.0},
]


@pytest.fixture
def axes(monkeypatch):
    """Return a list that the axes of each plot are added to."""
    created: list[Axes] = []
    original = figures._axes

    def record():
        figure, axes = original()
        created.append(axes)
        return figure, axes

    monkeypatch.setattr(figures, "_axes", record)
    return created


def curves(axes):
    return {line.get_label(): np.array(line.get_xydata()).tolist() for line in axes.get_lines()}


def test_losses_of_the_last_layer(axes):
    picture = figures.plot_losses(METRICS)
    assert curves(axes[0]) == {"total_loss": [[19, 3], [39, 2]], "loss_cls": [[19, 1], [39, 0.5]]}
    assert picture.dtype == np.uint8
    assert (picture != 255).any()


def test_results_of_one_and_of_several_datasets(axes):
    figures.plot_results(METRICS, "a")
    figures.plot_results(METRICS, "b")
    assert curves(axes[0]) == {"PQ": [[39, 40]]}
    assert curves(axes[1]) == {"PQ": [[39, 40]], "AP": [[39, 20]]}


def test_recall_is_the_share_of_objects_with_at_least_an_iou(axes):
    best = np.array([0.9, 0.3, 0.6, 0.0])
    fits = ObjectFits(np.zeros(4, int), np.ones(4, bool), np.ones(4), best, np.ones(4))
    figures.plot_recall(fits)
    assert set(curves(axes[0])) == {"things, best patch", "things, merged patches"}, "no stuff"
    for line in axes[0].get_lines():
        x, share = line.get_data()
        iou = best if "best" in line.get_label() else np.ones(4)
        for least in (0.1, 0.3, 0.5, 0.61, 1.0):
            step = np.searchsorted(x, least, side="left")  # "pre": the value of the next point on the right
            assert share[step] == pytest.approx((iou >= least).mean())


def test_later_run_replaces_the_metrics_of_an_earlier_one(tmp_path):
    """A training was stopped after iteration 59, resumed at 40 and, later, started again."""
    runs = [(19, 1.0), (39, 2.0), (59, 3.0), (40, 4.0), (60, 5.0)]
    lines = [json.dumps({"iteration": iteration, "total_loss": loss}) for iteration, loss in runs]
    (tmp_path / "metrics.json").write_text("\n".join([*lines, '{"itera']))
    assert [entry["total_loss"] for entry in read_metrics(tmp_path / "metrics.json")] == [1.0, 2.0, 4.0, 5.0]
    with open(tmp_path / "metrics.json", "a") as file:
        file.write("\n" + json.dumps({"iteration": 9, "total_loss": 6.0}) + "\n")
    assert [entry["total_loss"] for entry in read_metrics(tmp_path / "metrics.json")] == [6.0]
