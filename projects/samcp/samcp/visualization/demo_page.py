"""What the page of `make demo` says and shows."""

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
from samcp.data.image_io import read_image
from samcp.visualization.pages import Row, Section, write_page
from samcp.visualization.panels import paint_patches, panel

# Photographs inside the scikit-image package; its others would have to be downloaded.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
_FIGURES = {
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
    """Write PHOTOGRAPHS into a folder as JPEG, those that are not there yet."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        path = folder / f"{name}.jpg"
        if not path.exists():
            Image.fromarray(getattr(skimage.data, name)()).save(path, quality=95)


def compare(model: _Results, oracle: _Results) -> list[list[str]]:
    """Rows of the table: figure, model, oracle, and the model's share of what the patches allow; – where there is none.

    Args:
        model, oracle: as a DatasetEvaluator returns them, task -> figure -> percent; what one lacks is left out.
    """
    table = []
    for name, (task, figure) in _FIGURES.items():
        ours, bound = model.get(task, {}).get(figure), oracle.get(task, {}).get(figure)
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
        training: a sentence: what was trained, on what, for how long.
        table: from `compare`.
        panels: from `prediction_rows`.
        photographs: from `photograph_rows`.
        commands: that do by hand what the demo did.

    Returns:
        the path of its index.html.
    """
    sections = [
        Section(
            "How good",
            [
                training,
                "The oracle joins and names patches by the ground truth and passes through the same inference and the "
                "same evaluators: what a model that makes no mistake reaches with these patches. The images are "
                "drawn, so the figures say that the machinery works, not how good the method is.",
            ],
            header=["on synthetic_val", "model", "oracle", "share"],
            table=table,
        ),
        Section(
            "What it sees",
            ["An image of the validation split, its patches, what the model makes of them, and the ground truth."],
            rows=panels,
        ),
        Section(
            "Patches of photographs",
            [
                "Patches of real pictures, by the generator that needs no weights. They overlap at several scales; "
                "where they do, the smallest lies on top. The model above knows drawn shapes only and is not asked "
                "about these."
            ],
            rows=photographs,
        ),
        Section("The same by hand", commands=commands),
    ]
    return write_page(folder, "SAM-CP demo", sections)


def prediction_rows(
    records: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    cache: PatchCache,
    metadata: Metadata,
) -> list[Row]:
    """A row of pictures for each record, which has its "key" in the cache, and the prediction for it."""
    rows = []
    for record, prediction in zip(records, predictions, strict=True):
        patches = cache[record["key"]]
        pictures = panel(record, patches, prediction, metadata)
        rows.append(Row(record["key"], pictures, note=f"{len(patches)} patches"))
    return rows


def photograph_rows(folder: str | os.PathLike[str], cache: PatchCache) -> list[Row]:
    """A row for each of PHOTOGRAPHS that has patches in the cache: the picture, and its patches."""
    rows = []
    for name in PHOTOGRAPHS:
        image = read_image(os.path.join(folder, f"{name}.jpg"), "RGB")
        patches = cache[name]
        cover = "patch covers" if len(patches) == 1 else "patches cover"
        note = f"{len(patches)} {cover} {coverage(patches):.0%} of the picture"
        rows.append(Row(name, {"image": image, "patches": paint_patches(image, patches)}, note=note))
    return rows


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"
