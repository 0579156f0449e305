#!/usr/bin/env python
"""Cut the images of a dataset or a folder into patches, and keep them in a cache that training and evaluation read.

    python scripts/generate_sam_patches.py --dataset coco_2017_val_panoptic --checkpoint sam_vit_h_4b8939.pth \\
        --device cuda --output datasets/patches/coco_val
    python scripts/generate_sam_patches.py --images photos --generator regions --workers 4 --output patches

Many processes and machines may fill one cache, under torchrun, srun or mpirun:

    torchrun --nproc-per-node 8 scripts/generate_sam_patches.py --dataset ... --device cuda --output ...

Interrupted, the same command continues. An image that cannot be read is left out, with a warning and a note in the
cache's manifest; the exit status is 1 only if none could be done.
"""

import argparse
import difflib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from proposal_cache import CacheError, PatchCache
from proposal_cache.generators.base import Generator
from proposal_cache.generators.crops import CropGenerator
from proposal_cache.generators.refine import RefineGenerator
from proposal_cache.generators.regions import RegionGenerator
from proposal_cache.pipeline import Summary
from proposal_cache.ranks import Ranks, generate_together
from proposal_cache.sources import ImageFile, SourceError, from_folder, from_list, image_key


def main() -> None:
    arguments = _parser().parse_args()
    try:
        images = (
            _dataset_images(arguments.dataset, arguments.register)
            if arguments.dataset
            else from_folder(arguments.images)
        )
        name = arguments.dataset or str(arguments.images.resolve().name)
        ranks = Ranks.from_environment()
        generate_together(
            ranks,
            images,
            _generator(arguments, ranks),
            arguments.output,
            name,
            workers=arguments.workers if arguments.generator == "regions" else 0,
            loaders=arguments.loaders,
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
    print(summary)
    if summary.failed and not summary.images:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="registered in Detectron2; found under DETECTRON2_DATASETS")
    source.add_argument("--images", type=Path, metavar="DIR", help="a folder, with all folders in it")
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
        "--crops", type=_count, default=1, metavar="N", help="cut the long side into N crops first: 2 for Cityscapes"
    )
    parser.add_argument(
        "--refine", action="store_true", help="look again, enlarged, where patches are small or pixels uncovered"
    )
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes, for regions (default 1)")
    parser.add_argument(
        "--loaders", type=_count, default=2, metavar="N", help="image-reading threads, for sam (default 2)"
    )
    parser.add_argument("--shard-size", type=_count, default=1000, metavar="N", help="images in a file (default 1000)")
    regions = parser.add_argument_group("regions")
    regions.add_argument(
        "--parts", type=_count, default=140, metavar="N", help="smallest regions (default %(default)s)"
    )
    sam = parser.add_argument_group("sam and sam2")
    sam.add_argument(
        "--model-type", metavar="NAME", help="vit_h (default), vit_l, vit_b; sam2.1_hiera_large (default), ..."
    )
    sam.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of this model type")
    sam.add_argument(
        "--device", default="cpu", help="cpu, cuda (its own for each rank) or cuda:N (default %(default)s)"
    )
    sam.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of SAM's image encoder; the short ones are for GPUs (default %(default)s)",
    )
    sam.add_argument("--compile", action="store_true", help="SAM through torch.compile: slow to start, then faster")
    sam.add_argument("--points-per-side", type=_count, default=48, metavar="N", help="grid (default %(default)s)")
    sam.add_argument("--pred-iou-thresh", type=float, default=0.8, metavar="X", help="(default %(default)s)")
    sam.add_argument("--stability-score-thresh", type=float, default=0.9, metavar="X", help="(default %(default)s)")
    sam.add_argument("--box-nms-thresh", type=float, default=0.7, metavar="X", help="(default %(default)s)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def _generator(arguments: argparse.Namespace, ranks: Ranks) -> Generator:
    generator: Generator = (
        RegionGenerator(parts=arguments.parts)
        if arguments.generator == "regions"
        else _segment_everything(arguments, ranks)
    )
    if arguments.crops > 1:
        generator = CropGenerator(generator, arguments.crops)
    return RefineGenerator(generator) if arguments.refine else generator


def _segment_everything(arguments: argparse.Namespace, ranks: Ranks) -> Generator:
    model_type = arguments.model_type or {"sam": "vit_h", "sam2": "sam2.1_hiera_large"}[arguments.generator]
    if arguments.checkpoint is None:
        raise CacheError(
            f"{arguments.generator} needs weights: give --checkpoint FILE for --model-type {model_type} (they are at "
            "https://github.com/facebookresearch/segment-anything#model-checkpoints and "
            "https://github.com/facebookresearch/sam2#model-description), or use --generator regions"
        )
    options: dict[str, Any] = {
        "device": _device(arguments.device, ranks),
        "points_per_side": arguments.points_per_side,
        "pred_iou_thresh": arguments.pred_iou_thresh,
        "stability_score_thresh": arguments.stability_score_thresh,
        "box_nms_thresh": arguments.box_nms_thresh,
    }
    # torch is slow to import, and regions do without
    if arguments.generator == "sam":
        from proposal_cache.generators.sam import SamGenerator

        options |= {"dtype": arguments.dtype, "compile": arguments.compile}
        return SamGenerator.from_checkpoint(model_type, arguments.checkpoint, **options)
    if arguments.dtype != "float32" or arguments.compile:
        raise CacheError("--dtype and --compile are for --generator sam; leave them out")
    from proposal_cache.generators.sam2 import Sam2Generator

    return Sam2Generator.from_checkpoint(model_type, arguments.checkpoint, **options)


def _device(name: str, ranks: Ranks) -> str:
    """The device to use: `cuda` alone means one for each rank of a machine."""
    import torch

    kind, _, number = name.partition(":")
    if kind != "cuda":
        return name
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise CacheError(f"--device {name}: PyTorch finds {count} CUDA devices here; use --device cpu")
    return name if number else f"cuda:{ranks.local % count}"


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

        from samcp.data.datasets.own import register_files
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
