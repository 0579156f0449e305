#!/usr/bin/env python
"""Cut the images of a dataset or a folder into patches, and keep them in a cache that training and evaluation read.

    python scripts/generate_sam_patches.py --dataset coco_2017_val_panoptic --checkpoint sam_vit_h_4b8939.pth \\
        --device cuda --output datasets/patches/coco_val
    python scripts/generate_sam_patches.py --images photos --generator regions --workers 4 --output patches

Many processes and machines may fill one cache, under torchrun, srun or mpirun:

    torchrun --nproc-per-node 8 scripts/generate_sam_patches.py --dataset ... --device cuda --output ...

Interrupted, the same command continues. An image that cannot be read or cut is left out, with a warning and a note in
the cache's manifest; the exit status is 1 only if none could be done.
"""

import argparse
import difflib
import math
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from proposal_cache import CacheError, PatchCache
from proposal_cache.generation.pipeline import Summary
from proposal_cache.generation.ranks import Ranks
from proposal_cache.generation.sources import ImageFile, SourceError, from_folder, from_list, image_key, with_boxes
from proposal_cache.generation.together import generate_together
from proposal_cache.generators.base import Generator
from proposal_cache.generators.crops import CropGenerator
from proposal_cache.generators.refine import RefineGenerator
from proposal_cache.generators.regions import RegionGenerator

_MAX_CROPS = 255  # a cache can name 256 sources: one for each crop, one for the second look

# Options that are for some generators only.
_ANY_SAM = (
    *("loaders", "model_type", "checkpoint", "device"),
    *("points_per_side", "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"),
)
_OPTIONS = {
    "regions": ("workers", "parts"),
    "sam2": _ANY_SAM,
    "sam": (
        *_ANY_SAM,
        *("dtype", "compile", "memory_budget", "stability_score_offset"),
        *("crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor"),
        "min_mask_region_area",
    ),
}


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.name and arguments.dataset:
        parser.error("--name is for --images; --dataset has a name")
    sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        options = _options(arguments)
        ranks = Ranks.from_environment()
        images = (
            _dataset_images(arguments.dataset, arguments.register)
            if arguments.dataset
            else from_folder(arguments.images)
        )
        name = arguments.dataset or arguments.name or str(arguments.images.resolve().name)
        boxes_sha256 = None
        if arguments.boxes:
            images, boxes_sha256 = with_boxes(images, arguments.boxes)
        workers = options.pop("workers", 1) if arguments.generator == "regions" else 0
        loaders = options.pop("loaders", 2)
        generate_together(
            ranks,
            images,
            _generator(arguments, options, ranks, boxes_sha256),
            arguments.output,
            name,
            workers=workers,
            loaders=loaders,
            shard_size=arguments.shard_size,
            progress=ranks.rank == 0,
        )
        if ranks.rank > 0:
            return
        summary = Summary.of(PatchCache(arguments.output))
    except (CacheError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
    finally:
        signal.signal(signal.SIGTERM, sigterm)
    print(summary)
    if summary.failed and not summary.images:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="registered in Detectron2; found under DETECTRON2_DATASETS")
    source.add_argument("--images", type=Path, metavar="DIR", help="a folder, with all folders in it, linked ones too")
    parser.add_argument(
        "--name", help="what the cache calls the dataset of --images (default: as the folder), to go on after a move"
    )
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="YAML",
        help="your own data (docs/datasets.md); may be repeated",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of the cache")
    parser.add_argument(
        "--generator",
        choices=("sam", "sam2", "regions"),
        default="sam",
        help="sam, sam2: segment-everything; regions: by colour and texture, needs no checkpoint (default %(default)s)",
    )
    parser.add_argument(
        "--crops", type=_crops, default=1, metavar="N", help="cut the long side into N crops first: 2 for Cityscapes"
    )
    parser.add_argument(
        "--refine", action="store_true", help="look again, enlarged, where patches are small or pixels uncovered"
    )
    parser.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="look again, enlarged, into boxes of yours too (implies --refine): a json object, key of an image (its "
        "path under the images' folder, without suffix) -> list of [x0, y0, x1, y1] in pixels",
    )
    parser.add_argument("--shard-size", type=_count, default=1000, metavar="N", help="images in a file (default 1000)")
    _add_regions_options(parser)
    _add_sam_options(parser)
    return parser


def _add_regions_options(parser: argparse.ArgumentParser) -> None:
    # Without defaults: those of the generator hold, and an option is there only if it was given.
    regions = parser.add_argument_group("regions", argument_default=argparse.SUPPRESS)
    regions.add_argument("--workers", type=_count, metavar="N", help="processes (default 1)")
    regions.add_argument("--parts", type=_count, metavar="N", help="smallest regions (default 140)")


def _add_sam_options(parser: argparse.ArgumentParser) -> None:
    sam = parser.add_argument_group("sam and sam2", argument_default=argparse.SUPPRESS)
    sam.add_argument(
        "--model-type", metavar="NAME", help="vit_h (default), vit_l, vit_b; sam2.1_hiera_large (default), ..."
    )
    sam.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of this model type")
    sam.add_argument("--device", help="cpu (default), cuda (its own for each rank) or cuda:N")
    sam.add_argument("--loaders", type=_count, metavar="N", help="threads that read images (default 2)")
    sam.add_argument("--points-per-side", type=_count, metavar="N", help="grid (default 48)")
    sam.add_argument("--pred-iou-thresh", type=_number, metavar="X", help="quality a mask must have (default 0.8)")
    sam.add_argument(
        "--stability-score-thresh", type=_number, metavar="X", help="stability a mask must have (default 0.9)"
    )
    sam.add_argument("--box-nms-thresh", type=_number, metavar="X", help="IoU of two masks' boxes (default 0.7)")

    only = parser.add_argument_group("sam alone", argument_default=argparse.SUPPRESS)
    only.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the image encoder; the short ones are for GPUs (default float32)",
    )
    only.add_argument("--compile", action="store_true", help="use torch.compile: slow to start, then faster")
    only.add_argument(
        "--memory-budget",
        type=_mebibytes,
        metavar="MIB",
        help="that a step may take beside the model (default 32 on a CPU, 1024 on a GPU)",
    )
    only.add_argument(
        "--stability-score-offset", type=_number, metavar="X", help="that stability is measured with (default 1)"
    )
    only.add_argument(
        "--crop-n-layers",
        type=_count_from_zero,
        metavar="N",
        help="of SAM's own crops: layer i searches 4^i overlapping ones beside the image (default 0)",
    )
    only.add_argument("--crop-nms-thresh", type=_number, metavar="X", help="IoU between these crops (default 0.7)")
    only.add_argument(
        "--crop-overlap-ratio", type=_number, metavar="X", help="share of the image's short side (default 0.34)"
    )
    only.add_argument(
        "--crop-n-points-downscale-factor",
        type=_count,
        metavar="N",
        help="grid of layer i: points per side / N^i (default 1)",
    )
    only.add_argument(
        "--min-mask-region-area",
        type=_count_from_zero,
        metavar="N",
        help="remove holes and islands of fewer pixels from masks (default 0)",
    )


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


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options given of those that are for this generator; one for another is warned of, and has no effect."""
    options = {}
    for name, value in vars(arguments).items():
        owners = [generator for generator, names in _OPTIONS.items() if name in names]
        if arguments.generator in owners:
            options[name] = value
        elif owners:
            option = "--" + name.replace("_", "-")
            print(f"warning: {option} is for --generator {' or '.join(owners)}; it has no effect here", file=sys.stderr)
    return options


def _generator(
    arguments: argparse.Namespace, options: dict[str, Any], ranks: Ranks, boxes_sha256: str | None
) -> Generator:
    generator: Generator = (
        RegionGenerator(**options)
        if arguments.generator == "regions"
        else _segment_everything(arguments.generator, options, ranks)
    )
    whole = CropGenerator(generator, arguments.crops) if arguments.crops > 1 else generator
    if arguments.refine or arguments.boxes:
        return RefineGenerator(whole, detail=generator, boxes_sha256=boxes_sha256)
    return whole


def _segment_everything(name: str, options: dict[str, Any], ranks: Ranks) -> Generator:
    model_type = options.pop("model_type", {"sam": "vit_h", "sam2": "sam2.1_hiera_large"}[name])
    checkpoint = options.pop("checkpoint", None)
    if checkpoint is None:
        raise CacheError(
            f"{name} needs weights: give --checkpoint FILE for --model-type {model_type} (they are at "
            "https://github.com/facebookresearch/segment-anything#model-checkpoints and "
            "https://github.com/facebookresearch/sam2#model-description), or use --generator regions"
        )
    device = _device(options.pop("device", "cpu"), ranks)
    # torch is slow to import, and regions do without
    if name == "sam":
        from proposal_cache.generators.sam import SamGenerator

        return SamGenerator.from_checkpoint(model_type, checkpoint, device=device, **options)
    from proposal_cache.generators.sam2 import Sam2Generator

    return Sam2Generator.from_checkpoint(model_type, checkpoint, device=device, **options)


def _device(name: str, ranks: Ranks) -> str:
    """The device to use: `cuda` alone means one for each rank of a machine."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise CacheError(f"--device {name} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cpu":
        return name
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise CacheError(f"--device {name}: PyTorch finds {count} CUDA devices here; use --device cpu")
    return f"cuda:{ranks.local % count}" if device.index is None else name


def _dataset_images(name: str, own: list[str]) -> list[ImageFile]:
    """The images of a registered dataset, with the keys by which training finds their patches.

    Args:
        own: yaml files of datasets to register before.
    """
    with warnings.catch_warnings():
        # What Detectron2 and what it needs say of their own code while they are imported.
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
        from detectron2.data import DatasetCatalog

        from samcp.data.datasets.custom.register import register_files
        from samcp.data.patch_caches import image_root

    register_files(own)
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, list(DatasetCatalog), n=5, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"registered are: {', '.join(sorted(DatasetCatalog))}"
        raise SourceError(f"there is no dataset {name!r}; {hint}")
    try:
        records = DatasetCatalog.get(name)
        root = image_root(name)
    except (OSError, AssertionError) as error:
        folder = os.environ.get("DETECTRON2_DATASETS")
        where = f"DETECTRON2_DATASETS is {folder}" if folder else "DETECTRON2_DATASETS is not set: ./datasets is used"
        raise SourceError(
            f"dataset {name!r} cannot be read: {error}. {where}; it must name the datasets' folder"
        ) from error
    return from_list(((image_key(r["file_name"], root), r["file_name"]) for r in records), name)


if __name__ == "__main__":
    main()
