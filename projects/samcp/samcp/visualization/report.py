"""Sections that the report of a training and the page of `make demo` share."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from samcp.data.build import load_records
from samcp.data.patch_caches import cache_paths
from samcp.evaluation import compare_with_oracle
from samcp.evaluation.image_quality import SegmentedImage
from samcp.visualization.figures import plot_losses, plot_results
from samcp.visualization.pages import Row, Section
from samcp.visualization.panels import quality_row
from samcp.vocabulary import Vocabulary

Results = Mapping[str, Mapping[str, float]]  # task -> metric -> percent

_ORACLE = (
    "The oracle merges and labels patches by the ground truth and uses the same inference and evaluators: it is the "
    "upper bound that these patches allow."
)
_QUALITY = "The PQ of an image is the mean over the classes in its prediction or its ground truth."


def results_section(dataset: str, model: Results, oracle: Results, paragraphs: Sequence[str] = ()) -> Section:
    """Return the results of a model on a dataset with those of the oracle beside."""
    header = [f"on {dataset}", "model", "oracle", "share"]
    return Section("Results", [*paragraphs, _ORACLE], header=header, table=compare_with_oracle(model, oracle))


def curves_section(output_dir: str | os.PathLike[str], datasets: Sequence[str]) -> Section:
    """Return the curves of a training: its losses, and its results on each dataset.

    Args:
        output_dir: of the training; has Detectron2's metrics.json.
        datasets: of the evaluations.
    """
    metrics = read_metrics(Path(output_dir, "metrics.json"))
    pictures = {"losses of the last decoder layer": plot_losses(metrics)}
    pictures |= {f"evaluations on {name}": plot_results(metrics, name) for name in datasets}
    return Section("Curves", rows=[Row("", pictures)])


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the metrics of a training; those of a later run replace those of the same iterations and after."""
    metrics: list[dict[str, Any]] = []
    for line in file.read_text().splitlines():
        with suppress(ValueError):  # a full disk leaves an incomplete line
            entry = json.loads(line)
            while metrics and metrics[-1]["iteration"] > entry["iteration"]:
                metrics.pop()
            metrics.append(entry)
    return metrics


def images_section(heading: str, dataset: str, images: Sequence[SegmentedImage]) -> Section:
    """Return panels of images of a dataset."""
    rows = [quality_row(image, MetadataCatalog.get(dataset)) for image in images]
    return Section(heading, [_QUALITY], rows=rows)


def data_section(cfg: CfgNode) -> Section:
    """Return the datasets of a config with their numbers of images, and their patches."""
    table = []
    for split, is_train in (("training", True), ("validation", False)):
        for name, path in cache_paths(cfg, is_train=is_train).items():
            records, cache = load_records(name, path, skip_failed=True)
            is_thing = Vocabulary.of_dataset(name).is_thing
            generators = ", ".join(str(generator["name"]) for generator in cache.manifest.generators)
            classes = f"{sum(is_thing)} + {len(is_thing) - sum(is_thing)}"
            table.append([split, name, str(len(records)), classes, generators])
    return Section("Data", header=["", "dataset", "images", "things + stuff", "patches by"], table=table)


def config_section(cfg: CfgNode) -> Section:
    """Return the whole config."""
    return Section("Config", commands=cfg.dump().splitlines(), folded="all keys and values")
