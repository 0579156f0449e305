"""Segmentation of a user's images with a trained model."""

import argparse
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from proposal_cache import ContourGenerator, PatchCache, Patches
from proposal_cache.generation.sources import ImageFile, SourceError, from_folder, from_list, image_size, read_image
from proposal_cache.generators.base import Generator
from proposal_cache.generators.sam import SamGenerator
from samcp.config import load_config
from samcp.data.files import write_image, write_json, write_label_map, write_panoptic_ids
from samcp.errors import UsageError, exit_with_message
from samcp.evaluation.instances import to_coco_results
from samcp.photo_patches import photo_patches
from samcp.predictor import Answer, Predictor
from samcp.visualization.drawing import draw_prediction, vocabulary_metadata
from samcp.vocabulary import Vocabulary

_PICTURE_QUALITY = 92
_MAX_8_BITS = 255  # maximum number of classes in an 8-bit map; 255 is unlabeled


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(ValueError, OSError, interrupted="interrupted; patches that are done are kept"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Segment all images, and write pictures, maps and json."""
    images = find_images(arguments.images)
    _check_output(arguments.output, arguments.images)
    if arguments.patches:
        _check_cache(images, PatchCache(arguments.patches))
    predictor = _load(arguments)
    vocabulary = Vocabulary.read(arguments.words) if arguments.words is not None else predictor.vocabulary
    predictor.check_words(vocabulary)
    if arguments.patches:
        patches = _from_cache(images, PatchCache(arguments.patches))
    else:
        patches = photo_patches(images, _generator(arguments, str(predictor.model.device)))
    written = _segment(images, patches, predictor, vocabulary, arguments)
    if not written:
        raise UsageError("no image could be segmented")
    print(f"{len(written)} pictures are in {arguments.output}, the first one is {written[0]}")
    if arguments.open:
        webbrowser.open(written[0].resolve().as_uri())


def _load(arguments: argparse.Namespace) -> Predictor:
    """Load --weights or, for demo.py, build the model of --config-file."""
    if getattr(arguments, "config_file", None):
        predictor = Predictor.from_config(load_config(arguments))
    else:
        device = "" if arguments.device == "auto" else arguments.device
        predictor = Predictor.load(arguments.weights, device=device, clip=arguments.clip)
    threshold = getattr(arguments, "confidence_threshold", None)
    if threshold is not None:
        predictor.model.inference.score_threshold = threshold
    return predictor


def find_images(locations: Sequence[str]) -> list[ImageFile]:
    """Return the images of files, folders and URLs.

    A key is the path under the folder, or the name of the file; both without suffix.

    Raises:
        SourceError: there is no such file, a folder has no images, or two images have the same key.
    """
    entries: list[tuple[str, str]] = []
    for location in locations:
        if Path(location).is_dir():
            entries += [(image.key, image.url) for image in from_folder(location)]
        elif "://" in location or Path(location).is_file():
            entries.append((PurePosixPath(location.replace("\\", "/")).stem, location))
        else:
            raise SourceError(f"{location}: no such file or folder")
    return from_list(entries, "the command line")


def _check_output(output: Path, locations: Sequence[str]) -> None:
    """Raise ValueError if the output is inside an image folder, where it would be read as input."""
    for folder in (Path(location) for location in locations if Path(location).is_dir()):
        if folder.resolve() in (output.resolve(), *output.resolve().parents):
            raise ValueError(f"--output {output} is inside the folder of the images, {folder}; choose another folder")


def _check_cache(images: Sequence[ImageFile], cache: PatchCache) -> None:
    """Raise ValueError if a cache lacks images, or an image has another size than its patches."""
    missing = cache.missing([image.key for image in images if image.key not in cache.manifest.failures])
    if missing:
        raise ValueError(
            f"{cache.path} lacks {len(missing)} of {len(images)} images, for example {missing[0]}; repeat the command "
            f"that generated the patches, which processes only the missing images (`proposal-cache info {cache.path}` "
            "prints its dataset and generator), or omit --patches"
        )
    for image in images:
        size, patches = image_size(image.url), cache.get(image.key)
        if size is not None and patches is not None and size != (patches.width, patches.height):
            raise ValueError(
                f"{image.url} is {size[0]} x {size[1]} pixels, but its patches in {cache.path} are of "
                f"{patches.width} x {patches.height}; generate the patches from this image, in another cache"
            )


def _from_cache(images: Sequence[ImageFile], cache: PatchCache) -> dict[str, Patches | str]:
    failures = cache.manifest.failures
    return {i.key: f"{i.url}: {failures[i.key]}" if i.key in failures else cache[i.key] for i in images}


def _generator(arguments: argparse.Namespace, device: str) -> Generator:
    if not arguments.checkpoint:
        return ContourGenerator(device=device)
    return SamGenerator.from_checkpoint(arguments.model_type, arguments.checkpoint, device=device)


def _segment(
    images: Sequence[ImageFile],
    patches: Mapping[str, Patches | str],
    predictor: Predictor,
    vocabulary: Vocabulary,
    arguments: argparse.Namespace,
) -> list[Path]:
    """Write all outputs; return the pictures."""
    task = arguments.task or ("panoptic" if predictor.has_instances else "semantic")
    if task != "semantic" and not predictor.has_instances:
        raise UsageError(f"--task {task}: {arguments.weights} has no instances; use --task semantic")
    pictures, listed, annotations = [], [], []
    for image in tqdm(images, desc="segmentation", unit="image", mininterval=1):
        image_patches = patches[image.key]
        if isinstance(image_patches, str):
            tqdm.write(f"skipped: {image_patches}", file=sys.stderr)
            continue
        pixels = read_image(image.url, image.data)
        answer = predictor.encode(pixels, image_patches).ask(vocabulary)
        annotations += write_answer(answer, task, image.key, pixels, arguments.output)
        pictures.append(arguments.output / f"{image.key}.jpg")
        height, width = pixels.shape[:2]
        name = image.key + PurePosixPath(image.url).suffix
        listed.append({"id": image.key, "file_name": name, "height": height, "width": width})
    if task == "panoptic":
        categories = [
            {"id": i, "name": name, "isthing": int(is_thing)}
            for i, (name, is_thing) in enumerate(zip(vocabulary.names, vocabulary.is_thing, strict=True))
        ]
        content = {"images": listed, "annotations": annotations, "categories": categories}
        write_json(arguments.output / "panoptic.json", content)
    elif task == "instance":
        write_json(arguments.output / "instances.json", annotations)
    return pictures


def write_answer(answer: Answer, task: str, key: str, pixels: np.ndarray, output: Path) -> list[dict[str, Any]]:
    """Write picture and map of an image; return its annotations in COCO's format."""
    annotations: list[dict[str, Any]] = []
    prediction: dict[str, Any]
    if task == "panoptic":
        ids, segments = answer.panoptic()
        prediction = {"panoptic_seg": (ids, segments)}
        write_panoptic_ids(output / "panoptic" / f"{key}.png", ids.numpy())
        infos = [{**{name: s[name] for name in ("id", "category_id", "area", "score")}, "iscrowd": 0} for s in segments]
        annotations.append({"image_id": key, "file_name": f"{key}.png", "segments_info": infos})
    elif task == "instance":
        instances = answer.instances()
        prediction = {"instances": instances[instances.scores > answer.inference.score_threshold]}
        annotations += to_coco_results(instances, key)
    else:
        labels = answer.semantic()
        prediction = {"sem_seg": labels}
        depth = np.uint8 if len(answer.vocabulary.names) <= _MAX_8_BITS else np.uint16
        write_label_map(output / "semantic" / f"{key}.png", labels.numpy().astype(depth))
    picture = draw_prediction(pixels, prediction, vocabulary_metadata(answer.vocabulary))
    write_image(output / f"{key}.jpg", picture, "JPEG", quality=_PICTURE_QUALITY)
    return annotations
