"""Command line options of generation, shared by `proposal-cache generate` and scripts/generate_sam_patches.py."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proposal_cache.errors import CacheError

if TYPE_CHECKING:  # imported late, so that --help is fast
    from proposal_cache.generation.engines import Engine
    from proposal_cache.generation.streams import Source
    from proposal_cache.generators.base import Generator

_MAX_CROPS = 255  # a cache has at most 256 sources: one per crop, one for --refine

_ANY_SAM = (
    *("loaders", "model_type", "checkpoint", "device"),
    *("points_per_side", "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"),
)
_OPTIONS = {  # of each generator
    "regions": ("workers", "parts"),
    "sam2": _ANY_SAM,
    "sam": (
        *_ANY_SAM,
        *("dtype", "compile", "memory_budget", "stability_score_offset"),
        *("crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor"),
        "min_mask_region_area",
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options except those that name the images."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory of the cache")
    parser.add_argument(
        "--generator",
        choices=("sam", "sam2", "regions"),
        default="sam",
        help="sam, sam2: segment everything; regions: by colour and texture, without weights (default %(default)s)",
    )
    parser.add_argument(
        "--crops", type=_crops, default=1, metavar="N", help="split the long side into N crops: 2 for Cityscapes"
    )
    parser.add_argument(
        "--refine", action="store_true", help="search enlarged windows of small patches and uncovered pixels again"
    )
    parser.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="search these boxes enlarged too (implies --refine): a json object, key of an image (its path under the "
        "image folder, without suffix) -> list of [x0, y0, x1, y1] in pixels",
    )
    parser.add_argument("--shard-size", type=_count, default=1000, metavar="N", help="images per file (default 1000)")
    _add_engine_options(parser)
    _add_regions_options(parser)
    _add_sam_options(parser)


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("several machines")
    engine.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster (default local)"
    )
    engine.add_argument("--ray-address", metavar="ADDRESS", help="of the cluster; auto: the one of this machine")
    engine.add_argument(
        "--ray-actors",
        type=_range,
        default=(1, None),
        metavar="N[-MAX]",
        help="processes that run the generator (default 1 and more)",
    )
    engine.add_argument(
        "--part",
        metavar="I/N",
        help="process this share only, counted from 0 (default: that of torchrun, srun or a Slurm array)",
    )


def _add_regions_options(parser: argparse.ArgumentParser) -> None:
    # No defaults here: the generator has them, and a missing option is not passed.
    regions = parser.add_argument_group("regions", argument_default=argparse.SUPPRESS)
    regions.add_argument("--workers", type=_count, metavar="N", help="processes (default 1)")
    regions.add_argument("--parts", type=_count, metavar="N", help="smallest regions (default 140)")


def _add_sam_options(parser: argparse.ArgumentParser) -> None:
    sam = parser.add_argument_group("sam and sam2", argument_default=argparse.SUPPRESS)
    sam.add_argument(
        "--model-type", metavar="NAME", help="vit_h (default), vit_l, vit_b; sam2.1_hiera_large (default), ..."
    )
    sam.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of this model type")
    sam.add_argument("--device", help="cpu (default), cuda (all GPUs of this machine) or cuda:N")
    sam.add_argument("--loaders", type=_count, metavar="N", help="threads per GPU that decode images (default 2)")
    sam.add_argument("--points-per-side", type=_count, metavar="N", help="of the grid (default 48)")
    sam.add_argument("--pred-iou-thresh", type=_number, metavar="X", help="minimum predicted IoU (default 0.8)")
    sam.add_argument("--stability-score-thresh", type=_number, metavar="X", help="minimum stability (default 0.9)")
    sam.add_argument("--box-nms-thresh", type=_number, metavar="X", help="maximum IoU of two boxes (default 0.7)")

    only = parser.add_argument_group("sam only", argument_default=argparse.SUPPRESS)
    only.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the image encoder; 16 bits are for GPUs (default float32)",
    )
    only.add_argument("--compile", action="store_true", help="use torch.compile: slow to start, then faster")
    only.add_argument(
        "--memory-budget",
        type=_mebibytes,
        metavar="MIB",
        help="memory of one step beside the model (default 32 on a CPU, 1024 on a GPU)",
    )
    only.add_argument(
        "--stability-score-offset", type=_number, metavar="X", help="shift of the threshold for stability (default 1)"
    )
    only.add_argument(
        "--crop-n-layers", type=_count_from_zero, metavar="N", help="layers of SAM's crops; layer i has 4^i (default 0)"
    )
    only.add_argument("--crop-nms-thresh", type=_number, metavar="X", help="IoU between these crops (default 0.7)")
    only.add_argument(
        "--crop-overlap-ratio", type=_number, metavar="X", help="share of the image's short side (default 0.34)"
    )
    only.add_argument(
        "--crop-n-points-downscale-factor",
        type=_count,
        metavar="N",
        help="points per side of layer i are divided by N^i (default 1)",
    )
    only.add_argument(
        "--min-mask-region-area",
        type=_count_from_zero,
        metavar="N",
        help="remove holes and islands of fewer pixels from masks (default 0)",
    )


def run(arguments: argparse.Namespace, sources: "Sequence[Source]", dataset: str) -> int:
    """Generate a cache according to the options, and print its statistics.

    Returns:
        The exit status: 1 if there are images and all of them failed.
    """
    from proposal_cache.generation.engines import GeneratorFactory
    from proposal_cache.generation.parts import Part
    from proposal_cache.generation.pipeline import Summary, generate
    from proposal_cache.generation.sources import ImageFile, with_boxes
    from proposal_cache.store import PatchCache

    options = _generator_options(arguments)
    part = Part.parse(arguments.part) if arguments.part else Part.from_environment()
    wrap = {"crops": arguments.crops, "refine": arguments.refine or bool(arguments.boxes), "boxes_sha256": None}
    if arguments.boxes:
        images = [source for source in sources if isinstance(source, ImageFile)]
        if len(images) < len(sources):
            raise CacheError("--boxes needs a folder or a dataset, not URLs or tar files")
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
        print(f"{arguments.output}: part {part.index}/{part.count} is finished, others are not")
        return 0
    summary = Summary.of(PatchCache(arguments.output))
    print(summary)
    return int(summary.failed > 0 and summary.images == 0)


def build_generator(
    name: str, options: dict[str, Any], device: str, *, crops: int, refine: bool, boxes_sha256: str | None
) -> "Generator":
    """Return the generator of this name on a device; `options` are its parameters, for SAM with the checkpoint."""
    from proposal_cache.generators.crops import CropGenerator
    from proposal_cache.generators.refine import RefineGenerator
    from proposal_cache.generators.regions import RegionGenerator

    try:
        generator: Generator = RegionGenerator(**options) if name == "regions" else _build_sam(name, options, device)
    except ValueError as error:
        raise error if isinstance(error, CacheError) else CacheError(str(error)) from error
    whole = CropGenerator(generator, crops) if crops > 1 else generator
    return RefineGenerator(whole, detail=generator, boxes_sha256=boxes_sha256) if refine else whole


def _build_sam(name: str, options: dict[str, Any], device: str) -> "Generator":
    defaults = {"model_type": {"sam": "vit_h", "sam2": "sam2.1_hiera_large"}[name], "checkpoint": None}
    options = {**defaults, **options}
    model_type, checkpoint = options.pop("model_type"), options.pop("checkpoint")
    if checkpoint is None:
        raise CacheError(
            f"{name} needs weights: give --checkpoint FILE for --model-type {model_type} (they are at "
            "https://github.com/facebookresearch/segment-anything#model-checkpoints and "
            "https://github.com/facebookresearch/sam2#model-description), or use --generator regions"
        )
    if name == "sam":  # imports torch, which is slow and not needed for regions
        from proposal_cache.generators.sam import SamGenerator

        return SamGenerator.from_checkpoint(model_type, checkpoint, device=device, **options)
    from proposal_cache.generators.sam2 import Sam2Generator

    return Sam2Generator.from_checkpoint(model_type, checkpoint, device=device, **options)


def _generator_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that belong to the generator, and warn of those that belong to others."""
    options = {}
    for name, value in vars(arguments).items():
        owners = [generator for generator, names in _OPTIONS.items() if name in names]
        if arguments.generator in owners:
            options[name] = value
        elif owners:
            option = "--" + name.replace("_", "-")
            print(f"warning: {option} is for --generator {' or '.join(owners)}; it has no effect here", file=sys.stderr)
    return options


def _engine(arguments: argparse.Namespace, options: dict[str, Any], parts: int) -> "tuple[Engine, int]":
    """Return the engine and the threads that run a generator; removes the engine's options."""
    workers = options.pop("workers", 1) if arguments.generator == "regions" else 0
    loaders, device = options.pop("loaders", 2), options.pop("device", "cpu")
    # SAM2's generator holds state of its image, and a compiled model may not run in two threads.
    overlaps = arguments.generator == "sam" and device != "cpu" and not options.get("compile")
    threads = 2 if overlaps else 1
    if arguments.engine == "ray":
        from proposal_cache.generation.engines.ray import RayEngine

        if parts > 1:
            raise CacheError("--engine ray distributes the images itself; use --part with --engine local")
        if device not in ("cpu", "cuda"):
            raise CacheError(f"--device {device}: with --engine ray use cpu or cuda (one GPU per actor)")
        gpus = 1.0 if device == "cuda" else 0.0
        size = arguments.shard_size
        return RayEngine(
            address=arguments.ray_address, actors=arguments.ray_actors, gpus=gpus, loaders=loaders, shard_size=size
        ), threads
    from proposal_cache.generation.engines.local import LocalEngine

    devices = ["cpu"] if arguments.generator == "regions" else _devices(device)
    return LocalEngine(workers=workers, devices=devices, loaders=loaders), threads


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
        return [name]
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise CacheError(f"--device {name}: PyTorch finds {count} CUDA devices; use --device cpu")
    if device.index is not None:
        return [name]
    step = "SLURM_STEP_NUM_TASKS" in os.environ
    local = os.environ.get("LOCAL_RANK") or (os.environ.get("SLURM_LOCALID") if step else None)
    return [f"cuda:{int(local) % count}"] if local else [f"cuda:{index}" for index in range(count)]


def _range(text: str) -> tuple[int, int | None]:
    low, dash, high = text.partition("-")
    return _count(low), _count(high) if dash else None


def _count_from_zero(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text!r}")
    return int(text)


def _crops(text: str) -> int:
    if _count(text) > _MAX_CROPS:
        raise argparse.ArgumentTypeError(f"must be from 1 to {_MAX_CROPS}, not {text}")
    return int(text)


def _mebibytes(text: str) -> int:
    return _count(text) << 20


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return number
