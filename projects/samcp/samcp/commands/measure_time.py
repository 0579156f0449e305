"""Benchmark of whole-image inference, per stage (Table 11)."""

import argparse
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from proposal_cache.generation.sources import from_folder
from proposal_cache.generators.base import Generator
from proposal_cache.generators.contours import ContourGenerator
from samcp.commands.inputs import load_predictor
from samcp.config import load_config
from samcp.data.image_io import read_image
from samcp.errors import UsageError, exit_with_message
from samcp.predictor import Predictor
from samcp.vocabulary import Vocabulary

_PERCENTILES = (50, 90, 99)
_STAGES = ("patches", "image and patch encoder", "decoder and scores", "segmentations", "all but patches", "whole")
_PAPER = "The paper's Table 11, on an RTX 4090: SAM 3.41 s, the rest 0.21 s; SAM 2 1.61 s, the rest 0.18 s."


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(ValueError):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Time all images and print the table."""
    predictor, classes = load_predictor(arguments), _classes(arguments.config_file)
    predictor.generator = build_generator(arguments)
    files = [str(image.path) for image in from_folder(arguments.images)][: arguments.limit]
    time_image(predictor, files[0], arguments.device, classes)  # warm-up
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows = [time_image(predictor, file, arguments.device, classes) for file in tqdm(files, unit="image")]
    print(format_table(np.array([seconds for seconds, _ in rows])))
    print(f"{len(files)} images, {np.mean([count for _, count in rows]):.0f} patches per image; {describe(arguments)}")
    print(_PAPER)


def _classes(config_file: str) -> Vocabulary | None:
    """Return the classes of the test dataset of a config; None, for those of the predictor, without a config."""
    if not config_file:
        return None
    options = argparse.Namespace(config_file=config_file, opts=["MODEL.DEVICE", "cpu"], eval_only=True)
    return Vocabulary.of_dataset(load_config(options).DATASETS.TEST[0])


def time_image(
    predictor: Predictor, file: str, device: str, classes: Vocabulary | None = None
) -> tuple[list[float], int]:
    """Segment one image, into the given classes or those of the predictor.

    Returns:
        The seconds of each of _STAGES, and the number of patches.
    """
    image = read_image(file, "RGB")
    patches, generate = _timed(lambda: predictor.generator(image), device)
    scene, encode = _timed(lambda: predictor(image, patches), device)
    result, decode = _timed(lambda: scene.segment(classes), device)
    _, merge = _timed(lambda: result.inference(result.predictions, patches), device)
    return [generate, encode, decode, merge, encode + decode + merge, generate + encode + decode + merge], len(patches)


def format_table(seconds: np.ndarray) -> str:
    """Format seconds (images, stages) as a table of stages."""
    columns = [seconds.mean(axis=0), *np.percentile(seconds, _PERCENTILES, axis=0)]
    rows = [[name, *(column[i] for column in columns)] for i, name in enumerate(_STAGES)]
    headers = ["seconds per image", "mean", *(f"{p} %" for p in _PERCENTILES)]
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f")


def describe(arguments: argparse.Namespace) -> str:
    """Return a description of the device and its peak memory."""
    if arguments.device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
        return f"{torch.cuda.get_device_name()}, peak memory {memory:.1f} GiB"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads, peak memory of the process {memory:.1f} GiB"


def build_generator(arguments: argparse.Namespace) -> Generator:
    """Build the generator of the command line.

    Raises:
        UsageError: the generator needs a checkpoint.
    """
    if arguments.generator == "contours":
        return ContourGenerator(device=arguments.device)
    if arguments.checkpoint is None:
        raise UsageError(f"--generator {arguments.generator} needs --checkpoint FILE; --generator contours needs none")
    options = {"device": arguments.device, "points_per_side": arguments.points_per_side}
    if arguments.generator == "sam":
        from proposal_cache.generators.sam import SamGenerator

        return SamGenerator.from_checkpoint(arguments.model_type or "vit_h", arguments.checkpoint, **options)
    from proposal_cache.generators.sam2 import Sam2Generator

    model_type = arguments.model_type or "sam2.1_hiera_large"
    return Sam2Generator.from_checkpoint(model_type, arguments.checkpoint, **options)


def _timed(call: Callable[[], Any], device: str) -> tuple[Any, float]:
    """Return the result of a call and its seconds, including its work on a GPU."""
    started = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started
