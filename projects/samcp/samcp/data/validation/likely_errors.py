"""Likely errors of annotations that sizes and ids cannot prove: shifted labels, order of classes, EXIF orientation."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog

from samcp.data.ground_truth import annotated_size
from samcp.data.image_io import read_exif_orientation
from samcp.data.validation.coco_json import shown
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary, word_key

_SWAPPED = 5  # lowest EXIF orientation that swaps width and height


def label_remarks(names: Sequence[str], occurs: Sequence[bool]) -> list[str]:
    """Report labels that may count the classes from 1: their highest value is a valid label if the last class is rare.

    Args:
        names: of the classes, in the order of their labels.
        occurs: one per class, whether any label map has it.
    """
    last = len(names) - 1
    if last < 1 or not any(occurs):
        return []
    if not occurs[0]:
        return [
            f"label 0 ({names[0]!r}) never occurs; if the labels count the classes from 1, subtract 1 from each of them"
        ]
    if not occurs[last]:
        return [
            f"label {last}, the last class ({names[last]!r}), never occurs; if label 0 is the background and not "
            f"{names[0]!r}, so that the classes count from 1, subtract 1 from the labels and write 255 for the "
            "background"
        ]
    return []


def word_remarks(name: str, vocabulary: Vocabulary) -> list[str]:
    """Report categories of a custom json whose class has other words: `classes` may be in the wrong order."""
    metadata = MetadataCatalog.get(name)
    listed = metadata.get("panoptic_json") or metadata.get("json_file")
    if not metadata.get("described_in") or not metadata.get("vocabulary") or not listed:
        return []
    names = metadata.get("stuff_classes") or metadata.get("thing_classes")
    pairs = [
        f"{name!r} has the words {words[0]!r}"
        for name, words in zip(names, vocabulary.words, strict=True)
        if word_key(name) not in map(word_key, words)
    ]
    return [f"{listed}: {len(pairs)} categories have other words in classes: {shown(pairs)}"] if pairs else []


def turned_image_remarks(paths: Sequence[str]) -> list[str]:
    """Report images that EXIF turns without changing their size, which cannot show if the annotations are turned."""
    if not paths:
        return []
    return [
        f"{len(paths)} images are turned by their EXIF orientation: {shown(paths)}; their annotations must be turned "
        "too, which sizes do not show here: look at the images, for example among the samples"
    ]


def turned_by_exif(record: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Return the end of a message about a wrong size, "" if EXIF is not the cause.

    Args:
        record: of the dataset.
        size: (height, width) of the image after EXIF turned it.
    """
    orientation = read_exif_orientation(record["file_name"])
    try:
        is_cause = orientation >= _SWAPPED and annotated_size(record) == size[::-1]
    except DataError:  # already reported
        is_cause = False
    if not is_cause:
        return ""
    return (
        f". EXIF turns this image by 90 degrees (orientation {orientation}), but its annotations were made without "
        "that: turn them too, or remove the orientation from the file and make its patches again"
    )


def is_turned_in_place(path: str, size: tuple[int, int]) -> bool:
    """Return whether EXIF turns or mirrors an image of (height, width), and its size would be the same without that."""
    orientation = read_exif_orientation(path)
    return orientation != 1 and (orientation < _SWAPPED or size[0] == size[1])
