"""Page of `make demo`."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import skimage.data
from detectron2.data import Metadata
from PIL import Image

from proposal_cache import PatchCache
from proposal_cache.generation.pipeline import coverage
from proposal_cache.visualize import draw_patches
from samcp.data.image_io import read_image
from samcp.predictor import Predictor
from samcp.regions import predicted_regions
from samcp.visualization.drawing import draw_prediction, vocabulary_metadata
from samcp.visualization.pages import Row, Section, write_page
from samcp.visualization.panels import panel
from samcp.vocabulary import Vocabulary

# Photographs that the scikit-image package contains (its others would be downloaded), and what to look for in them.
PHOTOGRAPHS = {
    "astronaut": "person, helmet, flag~, space shuttle",
    "chelsea": "cat, blanket~",
    "coffee": "cup, spoon, plate, table~",
    "rocket": "rocket: missile, tower, sky~",
}
_METRICS = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ of things": ("panoptic_seg", "PQ_th"),
    "PQ of stuff": ("panoptic_seg", "PQ_st"),
    "AP (masks)": ("segm", "AP"),
    "AP (boxes)": ("bbox", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
    "Prompt I, accuracy": ("prompt_1", "accuracy"),
    "Prompt II, F1": ("prompt_2", "F1"),
}
_Results = Mapping[str, Mapping[str, float]]


def write_photographs(folder: str | os.PathLike[str]) -> None:
    """Write PHOTOGRAPHS into a folder as JPEG; skip existing files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        path = folder / f"{name}.jpg"
        if not path.exists():
            Image.fromarray(getattr(skimage.data, name)()).save(path, quality=95)


def compare(model: _Results, oracle: _Results) -> list[list[str]]:
    """Compare the results of the model with those of the oracle.

    Args:
        model, oracle: results of a DatasetEvaluator, task -> metric -> percent. Metrics that one lacks are skipped.

    Returns:
        Rows of a table: metric, model, oracle, and model / oracle; "–" for an undefined value.
    """
    table = []
    for name, (task, metric) in _METRICS.items():
        ours, bound = model.get(task, {}).get(metric), oracle.get(task, {}).get(metric)
        if ours is None or bound is None:
            continue
        share = f"{100 * ours / bound:.0f} %" if bound > 0 and not math.isnan(ours) else "–"
        table.append([name, _cell(ours), _cell(bound), share])
    return table


def write_demo_page(
    folder: str | os.PathLike[str],
    *,
    training: str,
    table: Sequence[Sequence[str]],
    panels: Sequence[Row],
    photographs: Sequence[Row],
    commands: Sequence[str],
) -> Path:
    """Write the page into a folder.

    Args:
        folder: created if missing.
        training: a sentence about the training: model, data and duration.
        table: from :func:`compare`.
        panels: from :func:`prediction_rows`.
        photographs: from :func:`photograph_rows`.
        commands: commands that repeat the demo step by step.

    Returns:
        The path of index.html.
    """
    sections = [
        Section(
            "Results",
            [
                training,
                "The oracle merges and labels patches by the ground truth and uses the same inference and evaluators: "
                "it is the upper bound that these patches allow. The images are drawn, so the results show that the "
                "code works, not how good the method is.",
            ],
            header=["on synthetic_val", "model", "oracle", "share"],
            table=table,
        ),
        Section(
            "Predictions",
            ["Images of the validation split with their patches, the predictions and the ground truth."],
            rows=panels,
        ),
        Section(
            "Photographs",
            [
                "Patches by the generator that needs no download (patches of several scales overlap; the smallest is "
                "drawn on top), and what samcp-everyday-lite, a small model that is part of the package, finds when it "
                "is asked for the words in the title. It was trained on 480 photographs, none of them these."
            ],
            rows=photographs,
        ),
        Section("Step by step", commands=commands),
    ]
    return write_page(Path(folder) / "index.html", "SAM-CP demo", sections)


def prediction_rows(
    records: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    cache: PatchCache,
    metadata: Metadata,
) -> list[Row]:
    """Draw one row per record.

    Args:
        records: Detectron2 records with their "key" in the cache.
        predictions: the model's outputs, one per record.
        cache: of the patches.
        metadata: of the dataset.
    """
    rows = []
    for record, prediction in zip(records, predictions, strict=True):
        patches = cache[record["key"]]
        pictures = panel(record, patches, predicted_regions(prediction), metadata)
        rows.append(Row(record["key"], pictures, note=f"{len(patches)} patches"))
    return rows


def photograph_rows(folder: str | os.PathLike[str], cache: PatchCache, predictor: Predictor) -> list[Row]:
    """Draw one row per photograph of PHOTOGRAPHS, with its patches from the cache and its segmentation."""
    rows = []
    for name, words in PHOTOGRAPHS.items():
        image = read_image(os.path.join(folder, f"{name}.jpg"), "RGB")
        patches, vocabulary = cache[name], Vocabulary.parse(words)
        answer = predictor.encode(image, patches).ask(vocabulary)
        prediction = {"panoptic_seg": answer.panoptic()}
        cover = "patch covers" if len(patches) == 1 else "patches cover"
        pictures = {
            "image": image,
            "patches": draw_patches(patches, image),
            "segmentation": draw_prediction(image, prediction, vocabulary_metadata(vocabulary)),
        }
        note = f"{len(patches)} {cover} {coverage(patches):.0%} of the picture"
        rows.append(Row(f"{name}: {', '.join(vocabulary.names)}", pictures, note=note))
    return rows


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"
