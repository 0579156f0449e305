"""Command line options of generation, shared by `proposal-cache generate` and scripts/generate_sam_patches.py."""

import argparse
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from proposal_cache.errors import CacheError
from proposal_cache.generation.engines import Engine, GeneratorFactory
from proposal_cache.generation.engines.local import LocalEngine
from proposal_cache.generation.parts import Part
from proposal_cache.generation.pipeline import generate, summary
from proposal_cache.generation.sources import ImageFile, with_boxes
from proposal_cache.generation.streams import Source
from proposal_cache.generators.base import Generator
from proposal_cache.store import PatchCache

# Generators and Ray are imported when they are used, so that --help is fast.

_WEIGHTS = (
    "weights are at https://github.com/facebookresearch/segment-anything#model-checkpoints and "
    "https://github.com/facebookresearch/sam2#model-description"
)
_MODEL_TYPES = {"sam": "vit_h", "sam2": "sam2.1_hiera_large"}  # by default


def _whole_number(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not {text!r}")
    return int(text)


_count = partial(_whole_number, 1)


def _range(text: str) -> tuple[int, int | None]:
    low, dash, high = text.partition("-")
    numbers = _count(low), _count(high) if dash else None
    if numbers[1] is not None and numbers[1] < numbers[0]:
        raise argparse.ArgumentTypeError(f"must be N or N-MAX with a MAX of at least N, not {text!r}")
    return numbers


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return number


_N: dict[str, Any] = {"type": _count, "metavar": "N"}
_N_OR_0: dict[str, Any] = {"type": partial(_whole_number, 0), "metavar": "N"}
_X: dict[str, Any] = {"type": _number, "metavar": "X"}
_FILE: dict[str, Any] = {"type": Path, "metavar": "FILE"}
_FLAG: dict[str, Any] = {"action": "store_true"}
_MIB: dict[str, Any] = {"type": lambda text: _count(text) << 20, "metavar": "MIB"}
_DTYPES: dict[str, Any] = {"choices": ("float32", "bfloat16", "float16")}

# Generators -> their options and help. The defaults are the generator's, to which a missing option is not passed.
_GENERATOR_OPTIONS: dict[tuple[str, ...], tuple[tuple[str, dict[str, Any], str], ...]] = {
    ("contours",): (
        ("--workers", _N, "processes on a CPU (default 1)"),
        ("--parts", _N, "regions that cover the image (default 60)"),
        ("--patches", _N, "maximum per image, also of --parts (default 240)"),
    ),
    ("contours", "sam2", "sam"): (
        ("--device", {"metavar": "DEVICE"}, "cpu (default), cuda (all GPUs of this machine) or cuda:N"),
        ("--loaders", _N, "threads per GPU that decode images (default 2)"),
    ),
    ("sam2", "sam"): (
        ("--model-type", {"metavar": "NAME"}, "vit_h (default), vit_l, vit_b, vit_t, lite; sam2.1_hiera_large, .."),
        ("--checkpoint", _FILE, "weights of this model type; for lite: of scripts/train_small_sam.py"),
        ("--points-per-side", _N, "of the grid (default 48)"),
        ("--pred-iou-thresh", _X, "minimum predicted IoU (default 0.8)"),
        ("--stability-score-thresh", _X, "minimum stability (default 0.9)"),
        ("--box-nms-thresh", _X, "maximum IoU of two boxes (default 0.7)"),
    ),
    ("sam",): (
        ("--dtype", _DTYPES, "of the image encoder; 16 bits are for GPUs (default float32)"),
        ("--compile", _FLAG, "use torch.compile: slow to start, then faster"),
        ("--memory-budget", _MIB, "memory of one step beside the model (default 32 on a CPU, 1024 on a GPU)"),
        ("--stability-score-offset", _X, "shift of the threshold for stability (default 1)"),
        ("--crop-n-layers", _N_OR_0, "layers of SAM's crops; layer i has 4^i (default 0)"),
        ("--crop-nms-thresh", _X, "IoU between these crops (default 0.7)"),
        ("--crop-overlap-ratio", _X, "share of the image's short side (default 0.34)"),
        ("--crop-n-points-downscale-factor", _N, "points per side of layer i are divided by N^i (default 1)"),
        ("--min-mask-region-area", _N_OR_0, "remove holes and islands of fewer pixels from masks (default 0)"),
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options except those that name the images."""
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="directory of the cache")
    text = (
        "sam, sam2: segment everything; contours: learned regions, without a download (default: sam with --checkpoint, "
        "otherwise contours)"
    )
    add("--generator", choices=("sam", "sam2", "contours"), help=text)
    add("--crops", **_N, default=1, help="split the long side into N crops: 2 for Cityscapes")
    add("--refine", **_FLAG, help="search enlarged windows of small patches and uncovered pixels again")
    text = (
        "search these boxes enlarged too (implies --refine): a json object, key of an image (its path under the image "
        "folder, without suffix) -> list of [x0, y0, x1, y1] in pixels"
    )
    add("--boxes", **_FILE, help=text)
    add("--shard-size", **_N, default=1000, help="images per file (default 1000)")

    add = parser.add_argument_group("several machines").add_argument
    only_ray: dict[str, Any] = {"default": argparse.SUPPRESS}
    text = "this machine, or a Ray cluster (default local)"
    add("--engine", choices=("local", "ray"), default="local", help=text)
    add("--ray-address", **only_ray, metavar="ADDRESS", help="of the cluster; auto: the one of this machine")
    text = "processes that run the generator (default 1 and more)"
    add("--ray-actors", **only_ray, type=_range, metavar="N[-MAX]", help=text)
    text = "process this share only, counted from 0 (default: that of torchrun, srun or a Slurm array)"
    add("--part", metavar="I/N", help=text)

    for generators, rows in _GENERATOR_OPTIONS.items():
        group = parser.add_argument_group(f"--generator {' or '.join(generators)}", argument_default=argparse.SUPPRESS)
        for name, settings, text in rows:
            group.add_argument(name, **settings, help=text)


def run(arguments: argparse.Namespace, sources: Sequence[Source], dataset: str) -> int:
    """Generate a cache, print its statistics, and return the exit status: 1 if all images failed."""
    if arguments.generator is None:
        arguments.generator = "sam" if "checkpoint" in arguments else "contours"
        if arguments.generator == "contours":
            text = f"patches by the generator contours; for those of SAM, give --checkpoint FILE ({_WEIGHTS})"
            print(text, file=sys.stderr)
    options = _generator_options(arguments)
    part = Part.parse(arguments.part) if arguments.part else Part.from_environment()
    wrap = {"crops": arguments.crops, "refine": arguments.refine or bool(arguments.boxes), "boxes_sha256": None}
    if arguments.boxes:
        images = [source for source in sources if isinstance(source, ImageFile)]
        if len(images) < len(sources):
            raise CacheError("--boxes needs a folder or a dataset, not tar files")
        sources, wrap["boxes_sha256"] = with_boxes(images, arguments.boxes)
    engine, threads = _engine(arguments, options, part.count)
    factory = GeneratorFactory(partial(build_generator, arguments.generator, options, **wrap), threads)
    complete = generate(
        sources,
        factory,
        arguments.output,
        dataset,
        engine=engine,
        part=part,
        shard_size=arguments.shard_size,
        progress=part.index == 0,
    )
    if not complete:
        print(f"{arguments.output}: part {part} is finished, others are not")
        return 0
    cache = PatchCache(arguments.output)
    print(summary(cache))
    return int(len(cache) == 0 and len(cache.manifest.failures) > 0)


def build_generator(
    name: str,
    options: dict[str, Any],
    device: str,
    *,
    crops: int = 1,
    refine: bool = False,
    boxes_sha256: str | None = None,
) -> Generator:
    """Return the generator of this name on a device; `options` are its parameters, for SAM with the checkpoint."""
    from proposal_cache.generators.crops import CropGenerator
    from proposal_cache.generators.refine import RefineGenerator

    try:
        generator = _build_whole(name, options, device)
    except ValueError as error:
        raise error if isinstance(error, CacheError) else CacheError(str(error)) from error
    whole = CropGenerator(generator, crops) if crops > 1 else generator
    return RefineGenerator(whole, detail=generator, boxes_sha256=boxes_sha256) if refine else whole


def _build_whole(name: str, options: dict[str, Any], device: str) -> Generator:
    """Return the generator for whole images."""
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)  # SAM 2 allocates some tensors on the current device
    if name == "contours":
        import torch

        from proposal_cache.generators.contours import ContourGenerator

        if parent_process():  # --workers N: processes with several threads each would fight for the cores
            torch.set_num_threads(1)
        return ContourGenerator(device=device, **options)
    options = {"model_type": _MODEL_TYPES[name], **options}
    if "checkpoint" not in options:
        raise CacheError(
            f"{name} needs weights: give --checkpoint FILE for --model-type {options['model_type']} ({_WEIGHTS}), or "
            "use --generator contours"
        )
    if name == "sam":
        from proposal_cache.generators.sam import SamGenerator

        return SamGenerator.from_checkpoint(device=device, **options)
    from proposal_cache.generators.sam2 import Sam2Generator

    return Sam2Generator.from_checkpoint(device=device, **options)


def _generator_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that belong to the generator, and warn of those that belong to others."""
    options = {}
    for generators, rows in _GENERATOR_OPTIONS.items():
        for option, name in ((option, option[2:].replace("-", "_")) for option, _, _ in rows):
            if name in arguments and arguments.generator in generators:
                value = getattr(arguments, name)
                # A worker of Ray may have another directory.
                options[name] = value.absolute() if isinstance(value, Path) else value
            elif name in arguments:
                owners = " or ".join(generators)
                print(f"warning: {option} is for --generator {owners}; it has no effect here", file=sys.stderr)
    return options


def _engine(arguments: argparse.Namespace, options: dict[str, Any], parts: int) -> tuple[Engine, int]:
    """Return the engine and the threads that run a generator; removes the engine's options."""
    loaders, device, workers = options.pop("loaders", 2), options.pop("device", "cpu"), options.pop("workers", 0)
    # SAM2's generator holds state of its image, and a compiled model may not run in two threads.
    overlaps = arguments.generator == "sam" and device != "cpu" and not options.get("compile")
    threads = 2 if overlaps else 1
    if arguments.engine == "ray":
        if workers:
            raise CacheError("--workers is for --engine local; with --engine ray use --ray-actors")
        return _ray_engine(arguments, device, loaders, parts), threads
    needs_ray = [name for name in ("ray_address", "ray_actors") if name in arguments]
    if needs_ray:
        raise CacheError(f"--{needs_ray[0].replace('_', '-')} is for --engine ray; add it, or remove the option")
    devices = ["cpu"] if device == "cpu" else _devices(device)
    if workers and devices != ["cpu"]:
        raise CacheError(f"--workers is for CPUs; --device {device} has one process per GPU: remove one of both")
    return LocalEngine(workers=workers, devices=devices, loaders=loaders), threads


def _ray_engine(arguments: argparse.Namespace, device: str, loaders: int, parts: int) -> Engine:
    from proposal_cache.generation.engines.ray import RayEngine

    if parts > 1:
        raise CacheError("--engine ray distributes the images itself; use --part with --engine local")
    if device not in ("cpu", "cuda"):
        raise CacheError(f"--device {device}: with --engine ray use cpu or cuda (one GPU per actor)")
    given = {"address": "ray_address", "actors": "ray_actors"}
    return RayEngine(
        **{name: getattr(arguments, option) for name, option in given.items() if option in arguments},
        gpus=1.0 if device == "cuda" else 0.0,
        loaders=loaders,
        shard_size=arguments.shard_size,
    )


def _devices(name: str) -> list[str]:
    """Return the devices to use: `cuda` is all GPUs, or the one of this process under torchrun or srun."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise CacheError(f"--device {name} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cpu":
        return ["cpu"]
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise CacheError(f"--device {name}: PyTorch finds {count} CUDA devices; use --device cpu")
    if device.index is not None:
        return [name]
    local = _local_rank(os.environ)
    return [f"cuda:{index}" for index in range(count)] if local is None else [f"cuda:{local % count}"]


def _local_rank(environment: Mapping[str, str]) -> int | None:
    """Return the number of this process on its machine, under torchrun or srun; None if it is the only one there."""
    if "LOCAL_RANK" in environment:
        name, processes = "LOCAL_RANK", environment.get("LOCAL_WORLD_SIZE", "")
    elif "SLURM_STEP_NUM_TASKS" in environment:  # a batch script has SLURM_LOCALID too, but is not a step
        name, processes = "SLURM_LOCALID", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    else:
        return None
    per_machine = re.sub(r"\(x\d+\)", "", processes).split(",")  # such as 4(x2),3
    return None if set(per_machine) == {"1"} else int(environment.get(name, "0"))
