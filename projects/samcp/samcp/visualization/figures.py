"""Plots of trainings and of patches, as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from samcp.evaluation.patch_quality import ObjectFits
from samcp.evaluation.results_table import METRICS
from samcp.visualization.drawing import Picture
from samcp.visualization.palette import class_colors

_SIZE = (6.4, 4.2)  # inches
_RESOLUTION = 140  # dots per inch


def figure_picture(figure: Figure) -> Picture:
    """Render a figure at its own resolution, (H, W, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def plot_losses(metrics: Sequence[Mapping[str, Any]]) -> Picture:
    """Plot the total loss and the losses of the last decoder layer over the iterations.

    Args:
        metrics: lines of Detectron2's metrics.json.
    """
    names = {name for line in metrics for name in line if "loss" in name and not name[-1].isdigit()}
    ordered = ["total_loss", *sorted(names - {"total_loss"})]
    return _plot_curves({name: _curve(metrics, name) for name in ordered}, "loss", log=True)


def plot_results(metrics: Sequence[Mapping[str, Any]], dataset: str) -> Picture:
    """Plot the results of the evaluations during a training over the iterations; each at least once.

    Args:
        metrics: lines of Detectron2's metrics.json.
        dataset: name of the dataset; its results have the prefix "NAME/" if there are several datasets.
    """
    curves = {}
    for name, (task, metric) in METRICS.items():
        key = f"{task}/{metric}"
        curves[name] = _curve(metrics, key) or _curve(metrics, f"{dataset}/{key}")
    return _plot_curves(curves, f"percent on {dataset}", log=False)


def plot_recall(fits: ObjectFits) -> Picture:
    """Plot the share of objects whose IoU is at least x over x, for the best patch and for merged patches."""
    figure, axes = _axes()
    kinds = {"things": fits.select(fits.is_thing), "stuff": fits.select(~fits.is_thing)}
    for color, (kind, part) in zip(class_colors(7)[[4, 5]], kinds.items(), strict=True):
        if len(part):
            _plot_share(axes, part.best, label=f"{kind}, best patch", color=color)
            _plot_share(axes, part.merged, label=f"{kind}, merged patches", color=color, linestyle="--")
    axes.set(xlabel="IoU", ylabel="recall: objects with at least this IoU", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend()
    return figure_picture(figure)


def _plot_share(axes: Axes, iou: np.ndarray, **style: Any) -> None:
    """Plot the share of values that are at least x, for x from 0 to 1, as a step function."""
    share = 1 - np.arange(len(iou) + 1) / len(iou)
    axes.step([0, *np.sort(iou), 1], [1, *share], where="pre", **style)


def _curve(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return (iteration, value) of the lines that have a value."""
    return [(line["iteration"], line[name]) for line in metrics if name in line]


def _plot_curves(curves: Mapping[str, Sequence[tuple[int, float]]], ylabel: str, *, log: bool) -> Picture:
    figure, axes = _axes()
    shown = {name: curve for name, curve in curves.items() if curve}
    styles = ["-", "--", ":"]
    for number, (name, curve) in enumerate(shown.items()):
        iterations, values = zip(*curve, strict=True)
        color = class_colors(7)[number % 7]
        marker = "o" if len(curve) < 30 else None
        axes.plot(iterations, values, styles[number // 7 % 3], color=color, marker=marker, markersize=3, label=name)
    axes.set(xlabel="iteration", ylabel=ylabel, yscale="log" if log else "linear")
    if not log:
        axes.set_ylim(0, 100)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure_picture(figure)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, dpi=_RESOLUTION, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes
