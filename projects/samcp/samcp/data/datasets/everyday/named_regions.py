"""Regions of BSDS500 and COCO with words that their annotations lack, such as grass; see named_regions.txt."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache.generation.sources import image_size
from samcp.data.datasets.conversion import describe_segments
from samcp.data.files import write_json, write_panoptic_ids
from samcp.data.ground_truth import read_label_map
from samcp.errors import DataError

_FILE = Path(__file__).with_suffix(".txt")

Regions = list[tuple[str, str]]  # word, and number or rectangle


def write_named_regions(folder: Path) -> dict[str, str]:
    """Write words_{train,val}.json and words/*.png in COCO's panoptic format, all classes as things.

    Args:
        folder: `everyday`, beside the folders of the datasets. Images that are not there are skipped.

    Returns:
        split -> numbers of images and regions.

    Raises:
        DataError: the segmentation of an image is missing.
    """
    base, images = folder.parent, read_named_regions()
    words = sorted({word for regions in images.values() for word, _ in regions})
    ids = {word: i for i, word in enumerate(words, start=1)}
    categories = [{"id": i, "name": word, "isthing": 1} for word, i in ids.items()]
    found = {}
    for split in ("train", "val"):
        present = [image for image in images if _split(image) == split and (base / image).is_file()]
        entries = [_describe(base, image, images[image], ids, folder / "words") for image in present]
        content = {
            "images": [image for image, _ in entries],
            "annotations": [annotation for _, annotation in entries],
            "categories": categories,
        }
        write_json(folder / f"words_{split}.json", content)
        count = sum(len(annotation["segments_info"]) for _, annotation in entries)
        found[f"words_{split}"] = f"{len(entries)} images, {count} regions"
    return found


def read_named_regions() -> dict[str, Regions]:
    """Return the regions of each image, whose path is under the folder of the datasets."""
    lines = [line for line in _FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {image: _parse(text) for image, _, text in (line.partition(": ") for line in lines)}


def read_segmentation(bsds500: Path, split: str, name: str) -> NDArray[np.int32]:
    """Return the segmentation (H, W) at the lower quartile of the numbers of regions: objects instead of parts.

    Raises:
        DataError: the image has none.
    """
    files = sorted((bsds500 / "segmentations" / split).glob(f"{name}_*.png"))
    if not files:
        raise DataError(f"{bsds500 / 'segmentations' / split}: no {name}_*.png; copy BSDS500 again")
    maps = sorted((read_label_map(str(file)) for file in files), key=lambda regions: int(regions.max()))
    return maps[len(maps) // 4]


def _parse(text: str) -> Regions:
    """Parse "potted plant 1 4; sky 0,0-10,5"."""
    regions: Regions = []
    for part in text.split(";"):
        tokens = part.split()
        first = next(i for i, token in enumerate(tokens) if token[0].isdigit())
        regions += [(" ".join(tokens[:first]), token) for token in tokens[first:]]
    return regions


def _split(image: str) -> str:
    return "val" if Path(image).parent.name == "val" else "train"


def _describe(
    base: Path, image: str, regions: Regions, categories: dict[str, int], folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the map of an image's regions; return its entries of the json: the image, and its annotation."""
    path = base / image
    width, height = image_size(path) or (0, 0)
    if not width:
        raise DataError(f"{path}: not an image, or damaged; copy it again")
    is_numbered = image.startswith("bsds500")
    numbers = read_segmentation(base / "bsds500", path.parent.name, path.stem) if is_numbered else None
    ids = np.zeros((height, width), np.int32)
    for i, (_, region) in enumerate(regions, start=1):
        inside = _rectangle(region, ids.shape) if numbers is None else numbers == int(region)
        ids[inside] = i
    file = f"{path.stem}.png"
    write_panoptic_ids(folder / file, ids)
    segments = [
        {"id": i, **segment, "category_id": categories[regions[i - 1][0]], "iscrowd": 0}
        for i, segment in describe_segments(ids, with_masks=False).items()
    ]
    return (
        {"id": image, "file_name": image, "height": height, "width": width},
        {"image_id": image, "file_name": file, "segments_info": segments},
    )


def _rectangle(text: str, size: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of a rectangle such as "0,0-10,5", in tenths."""
    (x0, y0), (x1, y1) = (map(int, corner.split(",")) for corner in text.split("-"))
    height, width = size
    return slice(y0 * height // 10, y1 * height // 10), slice(x0 * width // 10, x1 * width // 10)
