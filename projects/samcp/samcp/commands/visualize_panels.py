"""Panels of images, patches, predictions and ground truths of any dataset (Fig. 8, 10 to 12, 14)."""

import argparse

from detectron2.data import MetadataCatalog
from tqdm import tqdm

from samcp.commands.inputs import load_images, load_predictor, select_images
from samcp.data.files import write_image
from samcp.errors import exit_with_message
from samcp.evaluation.image_quality import SegmentedImage, by_quality, segment_images
from samcp.visualization.pages import Section, write_page
from samcp.visualization.panels import quality_row, side_by_side

_FIRST = 8  # images, if they are not ranked
_PICTURE_QUALITY = 90


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(ValueError):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Write a picture per image and a page of all."""
    records, cache = load_images(arguments)
    if arguments.images:
        records = select_images(records, arguments.images)
    else:
        ranked = arguments.best or arguments.worst
        records = records[: arguments.limit or (None if ranked else _FIRST)]
    predictor = load_predictor(arguments)
    segmented = list(segment_images(predictor, arguments.dataset, tqdm(records, unit="image", mininterval=1), cache))
    sections = []
    for heading, images in choose(segmented, arguments.best, arguments.worst).items():
        rows = [quality_row(image, MetadataCatalog.get(arguments.dataset)) for image in images]
        for image, row in zip(images, rows, strict=True):
            path = arguments.output / f"{image.record['key']}.jpg"
            write_image(path, side_by_side(list(row.pictures.values())), "JPEG", quality=_PICTURE_QUALITY)
            print(f"PQ {image.quality:5.1f}  {path}")
        sections.append(Section(f"{heading} of {len(segmented)} images", rows=rows))
    page = write_page(arguments.output / "index.html", arguments.dataset, sections)
    print(f"all pictures: {page}")


def choose(images: list[SegmentedImage], best: int, worst: int) -> dict[str, list[SegmentedImage]]:
    """Return the best and the worst images by heading, or all if neither number is given."""
    if not (best or worst):
        return {"All": images}
    ranked = by_quality(images)
    chosen = {"Best": ranked[::-1][:best], "Worst": ranked[:worst]}
    return {heading: found for heading, found in chosen.items() if found}
