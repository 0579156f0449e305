"""t-SNE of the features of patches, by class and by instance, with silhouette scores (Fig. 3, 4 and 13)."""

import argparse
import math

from detectron2.data import Metadata, MetadataCatalog
from matplotlib.figure import Figure
from tabulate import tabulate
from tqdm import tqdm

from proposal_cache import Patches
from samcp.commands.inputs import load_images, load_predictor, select_images
from samcp.data.build import Record
from samcp.data.files import write_image
from samcp.data.image_io import read_image
from samcp.errors import DataError, exit_with_message
from samcp.predictor import Predictor
from samcp.regions import Regions, true_regions
from samcp.visualization.drawing import Picture, draw_regions
from samcp.visualization.figures import figure_picture
from samcp.visualization.pages import Row, Section, write_page
from samcp.visualization.palette import region_colors
from samcp.visualization.tsne import STAGES, PatchFeatures, draw_tsne, patch_features, silhouette

_HEADER = ["", "patches", *(f"{label}, {stage}" for label in ("class", "instance") for stage in STAGES)]
_HEIGHT = 3.2  # inches
_RESOLUTION = 120  # dots per inch


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(ValueError):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Write a figure of all images, one per image, and a page with the silhouette scores."""
    records, cache = load_images(arguments)
    records = select_images(records, arguments.images) if arguments.images else records[: arguments.limit]
    predictor, metadata = load_predictor(arguments), MetadataCatalog.get(arguments.dataset)
    parts, rows = [], []
    for record in tqdm(records, unit="image", mininterval=1):
        part, truth = _features(predictor, record, cache[record["key"]], metadata)
        parts.append(part)
        rows.append(Row(record["key"], {"t-SNE": draw(part, _truth_picture(record, truth, metadata))}))
    together = PatchFeatures.concatenate(parts)
    if not len(together):
        raise DataError(f"{arguments.dataset}: no patch is inside an annotated region, so there is nothing to draw")
    rows.insert(0, Row(f"all {len(parts)} images", {"t-SNE": draw(together, None)}))
    for row, name in zip(rows, ("all", *(record["key"] for record in records)), strict=True):
        write_image(arguments.output / f"{name}.png", row.pictures["t-SNE"])
    table = [_scores(row.title, part) for row, part in zip(rows, [together, *parts], strict=True)]
    print("Silhouette of the labels in the features, from -1 to 1:")
    print(tabulate(table, headers=_HEADER, tablefmt="pipe", disable_numparse=True))
    note = "Silhouette of the labels in the features (not in the plots), by the cosine distance; 1 is best."
    sections = [Section("Silhouette scores", [note], header=_HEADER, table=table), Section("t-SNE", rows=rows)]
    print(f"all pictures: {write_page(arguments.output / 'index.html', arguments.dataset, sections)}")


def draw(features: PatchFeatures, truth: Picture | None) -> Picture:
    """Draw classes and instances at both stages, beside a picture of the ground truth, whose colours they have."""
    columns = 4 if truth is None else 5
    figure = Figure(figsize=(columns * _HEIGHT, _HEIGHT), dpi=_RESOLUTION, layout="constrained")
    axes = figure.subplots(1, columns)
    if truth is not None:
        axes[0].imshow(truth)
        axes[0].set_axis_off()
    plots = iter(axes[-4:])
    for stage in STAGES:
        draw_tsne(next(plots), f"classes, {stage}", features.by_class(stage))
    for stage in STAGES:
        draw_tsne(next(plots), f"instances, {stage}", features.by_instance(stage))
    return figure_picture(figure)


def _features(
    predictor: Predictor, record: Record, patches: Patches, metadata: Metadata
) -> tuple[PatchFeatures, Regions]:
    truth = true_regions(record, (patches.height, patches.width), metadata)
    return patch_features(predictor(record["file_name"], patches), truth), truth


def _truth_picture(record: Record, truth: Regions, metadata: Metadata) -> Picture:
    return draw_regions(read_image(record["file_name"], "RGB"), truth, region_colors(truth), metadata)


def _scores(name: str, features: PatchFeatures) -> list[str]:
    """Return a row of the table: name, number of patches, and the four scores."""
    points = [*map(features.by_class, STAGES), *map(features.by_instance, STAGES)]
    scores = [silhouette(values, labels) for values, labels, _ in points]
    return [name, str(len(features)), *("–" if math.isnan(score) else f"{score:.2f}" for score in scores)]
