"""Segmentation of a folder of images with a trained model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from proposal_cache import PatchCache
from proposal_cache.generation.sources import ImageFile, from_folder, image_size, read_image
from samcp.data.files import write_image, write_json, write_label_map, write_panoptic_ids
from samcp.errors import USER_ERRORS
from samcp.predictor import Answer, Predictor
from samcp.visualization.drawing import draw_prediction, vocabulary_metadata
from samcp.vocabulary import Vocabulary

_PICTURE_QUALITY = 92
_MAX_8_BITS = 255  # maximum number of classes in an 8-bit map; 255 is unlabeled


def main(arguments: argparse.Namespace) -> None:
    try:
        segment(arguments)
    except (*USER_ERRORS, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(f"pictures of {arguments.images} are in {arguments.output}")


def segment(arguments: argparse.Namespace) -> None:
    """Segment all images of a folder, and write pictures and maps."""
    _check_output(arguments.output, arguments.images)
    images, cache = from_folder(arguments.images), PatchCache(arguments.patches)
    failed = [image for image in images if image.key in cache.manifest.failures]
    for image in failed:
        print(f"skipped: {image.path}: {cache.manifest.failures[image.key]}", file=sys.stderr)
    images = [image for image in images if image not in failed]
    missing = cache.missing([image.key for image in images])
    if missing:
        raise ValueError(
            f"{arguments.patches} lacks {len(missing)} of {len(images)} images, for example {missing[0]}; repeat the "
            "command that generated the patches, which processes only the missing images (`proposal-cache info "
            f"{arguments.patches}` prints its dataset and generator)"
        )
    sizes = _check_sizes(images, cache)
    predictor = Predictor.load(arguments.weights, device=arguments.device, clip=arguments.clip)
    vocabulary = Vocabulary.read(arguments.vocabulary) if arguments.vocabulary is not None else predictor.vocabulary
    annotations = []
    for image in tqdm(images, unit="image", mininterval=1):
        answer = predictor.encode(image.path, cache[image.key]).ask(vocabulary)
        annotations += write_answer(answer, image, arguments.output)
    if annotations:
        write_json(
            arguments.output / "panoptic.json", _coco_json(images, sizes, arguments.images, annotations, vocabulary)
        )


def _check_output(output: Path, images: Path) -> None:
    """Raise ValueError if the output is inside the image folder, where it would be read as input."""
    if images.resolve() in (output.resolve(), *output.resolve().parents):
        raise ValueError(f"--output {output} is inside the folder of the images, {images}; choose another folder")


def _check_sizes(images: Sequence[ImageFile], cache: PatchCache) -> list[tuple[int, int]]:
    """Return (height, width) of each image; raise ValueError if it differs from the size of its patches."""
    sizes = []
    for image in images:
        size, patches = image_size(image.path), cache[image.key]
        if size is not None and size != (patches.width, patches.height):
            raise ValueError(
                f"{image.path} is {size[0]} x {size[1]} pixels, but its patches in {cache.path} are of "
                f"{patches.width} x {patches.height}; generate the patches from this image, in another cache"
            )
        sizes.append((patches.height, patches.width))
    return sizes


def write_answer(answer: Answer, image: ImageFile, output: Path) -> list[dict[str, Any]]:
    """Write visualization and map of an image; return its panoptic annotation if the model has instances."""
    annotations: list[dict[str, Any]] = []
    if answer.has_instances:
        ids, segments = answer.panoptic()
        prediction: dict[str, Any] = {"panoptic_seg": (ids, segments)}
        write_panoptic_ids(output / "panoptic" / f"{image.key}.png", ids.numpy())
        infos = [{**{key: s[key] for key in ("id", "category_id", "area", "score")}, "iscrowd": 0} for s in segments]
        annotations.append({"image_id": image.key, "file_name": f"{image.key}.png", "segments_info": infos})
    else:
        labels = answer.semantic()
        prediction = {"sem_seg": labels}
        depth = np.uint8 if len(answer.vocabulary.names) <= _MAX_8_BITS else np.uint16
        write_label_map(output / "semantic" / f"{image.key}.png", labels.numpy().astype(depth))
    picture = draw_prediction(read_image(image.path), prediction, vocabulary_metadata(answer.vocabulary))
    write_image(output / f"{image.key}.jpg", picture, "JPEG", quality=_PICTURE_QUALITY)
    return annotations


def _coco_json(
    images: Sequence[ImageFile],
    sizes: Sequence[tuple[int, int]],
    folder: Path,
    annotations: list[dict[str, Any]],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    return {
        "images": [
            {"id": image.key, "file_name": str(image.path.relative_to(folder)), "height": height, "width": width}
            for image, (height, width) in zip(images, sizes, strict=True)
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name, "isthing": int(is_thing)}
            for i, (name, is_thing) in enumerate(zip(vocabulary.names, vocabulary.is_thing, strict=True))
        ],
    }
