"""Segmentation of a user's images with a trained model."""

import argparse
import glob
import itertools
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tqdm import tqdm

from proposal_cache import PatchCache, Patches
from proposal_cache.errors import reason
from proposal_cache.generation.sources import (
    SUFFIXES,
    ImageError,
    ImageFile,
    SourceError,
    from_folder,
    from_list,
    image_key,
    image_size,
)
from proposal_cache.generators.base import Generator
from proposal_cache.generators.sam import SamGenerator
from samcp.config import load_config
from samcp.errors import UsageError, exit_with_message
from samcp.parts import PartWords, segment_parts
from samcp.photo_patches import photo_patches
from samcp.predictor import Predictor
from samcp.result import Result
from samcp.result_files import picture_path, save_results
from samcp.vocabulary import Vocabulary, packaged_names


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(ValueError, OSError, interrupted="interrupted; patches that are done are kept"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Segment all images, and write pictures, maps and json."""
    images = find_images(arguments.images)
    _check_output(arguments.output, arguments.images, images)
    if arguments.patches:
        _check_cache(images, PatchCache(arguments.patches))
    parts = _part_words(arguments)
    predictor = load_predictor(arguments)
    task = _check_task(arguments, predictor)
    _set_threshold(arguments.confidence_threshold, task, predictor)
    vocabulary = _vocabulary(arguments.words, predictor)
    for words in (vocabulary,) if parts is None else (parts.wholes, *parts.parts):
        predictor.check_words(words)
    _create(arguments.output)
    images = [_download(image) for image in images]
    if arguments.patches:
        patches = _from_cache(images, PatchCache(arguments.patches))
    else:
        patches = photo_patches(images, patch_generator(arguments, predictor))
    asked = arguments.words is not None and arguments.words.casefold() not in packaged_names()
    written = _segment(images, patches, predictor, parts or vocabulary, task, arguments.output, asked=asked)
    if not written:
        raise UsageError("no image could be segmented")
    plural = "s" if len(written) > 1 else ""
    print(f"wrote {len(written)} picture{plural} to {arguments.output}, the first one is {written[0]}")
    if arguments.open:
        webbrowser.open(written[0].resolve().as_uri())


def load_predictor(arguments: argparse.Namespace) -> Predictor:
    """Load --weights or, for demo.py, build the model of --config-file."""
    if getattr(arguments, "config_file", None):
        predictor = Predictor.from_config(load_config(arguments))
    else:
        device = "" if arguments.device == "auto" else arguments.device
        predictor = Predictor.from_pretrained(arguments.weights, device=device, clip=arguments.clip)
    return predictor


def _check_task(arguments: argparse.Namespace, predictor: Predictor) -> str:
    """Return --task or its default; raises UsageError if it needs instances and the model has none."""
    task = arguments.task or ("panoptic" if predictor.has_instances else "semantic")
    if task != "semantic" and not predictor.has_instances:
        raise UsageError(f"--task {task}: {arguments.weights} has no instances; use --task semantic")
    return str(task)


def _set_threshold(threshold: float | None, task: str, predictor: Predictor) -> None:
    inference = predictor.model.inference
    if threshold is None:
        return
    if task != "semantic":
        inference.score_threshold = threshold
    elif inference.merge == "paper":
        raise UsageError("--confidence-threshold has no effect on the semantic maps of MODEL.SAMCP.TEST.MERGE paper")
    else:
        inference.semantic_threshold = threshold


def _vocabulary(words: str | None, predictor: Predictor) -> Vocabulary:
    """Return the classes of --words; those of a packaged vocabulary that the model does not know are skipped."""
    if words is None:
        return predictor.vocabulary
    vocabulary = Vocabulary.read(words)
    if words.casefold() not in packaged_names():
        return vocabulary
    known = predictor.distinct(vocabulary)
    skipped = [name for name in vocabulary.names if name not in known.names]
    if skipped:
        print(
            f"warning: the model does not know or distinguish {len(skipped)} of the {len(vocabulary.names)} classes of "
            f"{words}, such as {skipped[0]}; they are skipped",
            file=sys.stderr,
        )
    return known


def _create(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be created: {reason(error)}") from error


def _part_words(arguments: argparse.Namespace) -> PartWords | None:
    """Return the words of --parts, None without --parts.

    Raises:
        UsageError: --parts, --task and --words do not go together.
    """
    if (arguments.task == "parts") != (arguments.parts is not None):
        raise UsageError('--task parts and --parts need each other: --task parts --parts "cup > espresso"')
    if arguments.parts is None:
        return None
    if arguments.words is not None:
        raise UsageError("--parts has the words of the objects before each >; omit --words")
    return PartWords.parse(arguments.parts)


def find_images(locations: Sequence[str]) -> list[ImageFile]:
    """Return the images of files, folders, patterns such as "photos/**/*.jpg", and URLs.

    A key is the path under the folder, or under the last folder of a pattern before its first wildcard, or the name of
    the file; all without suffix.

    Raises:
        SourceError: there is no such file, a folder or pattern has no images, or two images have the same key.
    """
    entries: list[tuple[str, str]] = []
    for location in locations:
        if Path(location).is_dir():
            entries += [(image.key, image.url) for image in from_folder(location)]
        elif "://" in location or Path(location).is_file():
            entries.append((_file(location).stem, location))
        elif glob.has_magic(location):
            entries += _matching(location)
        else:
            raise SourceError(f"{location}: no such file or folder")
    return from_list(entries, "the command line")


def _file(location: str) -> PurePosixPath:
    """Return the path of a file, or host and path of a URL, without its query."""
    if "://" not in location:
        return PurePosixPath(location.replace("\\", "/"))
    parts = urlsplit(location)
    return PurePosixPath(parts.netloc + parts.path)


def _matching(pattern: str) -> list[tuple[str, str]]:
    """Return key and path of each image that matches a pattern."""
    folder = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    paths = sorted(path for path in glob.iglob(pattern, recursive=True) if Path(path).suffix.lower() in SUFFIXES)
    if not paths:
        raise SourceError(f"{pattern}: no image matches (supported: {', '.join(sorted(SUFFIXES))})")
    return [(image_key(path, folder), path) for path in paths]


def _check_output(output: Path, locations: Sequence[str], images: Sequence[ImageFile]) -> None:
    """Raise ValueError if the output is inside an image folder, where it would be read as input, or replaces images."""
    for folder in (Path(location) for location in locations if Path(location).is_dir()):
        if folder.resolve() in (output.resolve(), *output.resolve().parents):
            raise ValueError(f"--output {output} is inside the folder of the images, {folder}; choose another folder")
    for image in images:
        if picture_path(output, image.key).resolve() == Path(image.url.removeprefix("file://")).resolve():
            raise ValueError(f"--output {output}: the picture would replace {image.url}; choose another folder")


def _download(image: ImageFile) -> ImageFile:
    """Return an image at a URL with its content, which is used twice; others, or if it fails, as they are."""
    try:
        return image.fetch() if "://" in image.url else image
    except ImageError:
        return image  # skipped with a message when it is used


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
    for image in images:
        if image.key in failures:
            print(f"warning: skipped: {image.url}: {failures[image.key]}", file=sys.stderr)
    return {image.key: failures.get(image.key) or cache[image.key] for image in images}


def patch_generator(arguments: argparse.Namespace, predictor: Predictor) -> Generator:
    """Return SAM's generator with --checkpoint, else the predictor's own."""
    if not arguments.checkpoint:
        return predictor.generator
    device = str(predictor.model.device)
    return SamGenerator.from_checkpoint(arguments.model_type, arguments.checkpoint, device=device)


def _segment(
    images: Sequence[ImageFile],
    patches: Mapping[str, Patches | str],
    predictor: Predictor,
    words: Vocabulary | PartWords,
    task: str,
    output: Path,
    *,
    asked: bool,
) -> list[Path]:
    """Write all outputs and print what was found and, if the user asked for it, what was not; return the pictures."""
    shape = "panoptic" if task == "parts" else task

    def results() -> Iterator[tuple[str, str, Result]]:
        for image in tqdm(images, desc="segmentation", unit="image", mininterval=1):
            image_patches = patches[image.key]
            if isinstance(image_patches, str):
                continue  # a warning has said so
            try:
                pixels = image.read()
            except ImageError as error:
                tqdm.write(f"warning: skipped: {error}", file=sys.stderr)
                continue
            scene = predictor(pixels, image_patches)
            result = segment_parts(scene, words) if isinstance(words, PartWords) else scene.segment(words)
            missing = result.missing(shape) if asked else ()
            others = f" (not found: {', '.join(missing)})" if 0 < len(missing) < len(result.vocabulary.names) else ""
            tqdm.write(f"{image.key}: {result.summary(shape)}{others}")
            yield image.key, image.key + _file(image.url).suffix, result

    paths = save_results(results(), output, shape)
    return [path for path in paths if path.suffix == ".jpg"]
