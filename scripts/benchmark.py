#!/usr/bin/env python
"""Measure speed and memory, with the peers of each part, and compare with the run kept in docs.

    python scripts/benchmark.py all --quick
    python scripts/benchmark.py all --update docs
    python scripts/benchmark.py data --update docs
    python scripts/benchmark.py generation --model-type vit_b vit_h

`all` runs the others with their default options; --quick with smaller ones, in about five minutes, as a trial whose
figures are too noisy to report. Tables are printed and written to --report as they are made. With --update, they
replace those of the same benchmark in docs/benchmarks.md and docs/benchmarks.json, after a warning for each ratio to a
peer that is more than 20 % below the one kept there. `make bench` is `all --update docs`. Run it on a machine without
other processes: ratios are measured in turns, but times are not.

`python scripts/benchmark.py NAME --help` describes each measurement.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samcp.command_line import command_parser, count

GENERATION = """Compare time and memory of SamGenerator with segment_anything's SamAutomaticMaskGenerator.

Both run on the same image with the same random weights, one after the other. The time of encoder and decoder does not
depend on the weights, but masks of random weights are noise with very long run-length encodings. Therefore, outside the
timing, each batch of decoder outputs is replaced by smooth logits computed from regions of the image (`RegionLogits`).
A share of --survival of them passes the predicted-IoU threshold; their stability and overlap are not controlled.

The time of the decoder and of nearly all later steps is proportional to the number of prompts. With
--measured-points-per-side M, both generators run M² prompts, and the times are extrapolated to --points-per-side.

Memory is measured in a separate process per run. There the decoder runs for the first --memory-prompts prompts only:
all batches need the same memory for the decoder, while the stored results grow with each batch.

The encoder's time is also compared with its number of operations at the rate of a large matrix product.
"""
STORE = """Compare the patch cache with other storage formats: pickle files, json files, and an HDF5 group per image.

Writes synthetic patches in all formats, and measures bytes per image, load and write times in turns; then compression
methods for the masks, and the time and memory of several processes that read the cache. `--images 118287 --output
SCRATCH` has the size of COCO, writes about 17 GB and takes half an hour.

By default, as many images are read as were written, as in an epoch of training. The files of a format are read once
before each of its turns, so if they fit into memory, disk speed is not measured.
"""
DATA = """Time the loading of training images, compared with decoding and augmenting dense masks.

The default data are photographs of scikit-image at 480 x 640 with 150 patches and a panoptic ground truth of about 20
segments each; --dataset selects a registered dataset. The augmentation is that of the paper's COCO recipe. Measures

1. milliseconds per image of each part of the mapper, and of decoding and augmenting all masks as Detectron2's mapper
   does, measured alternately. A dense data path would also have to compute overlaps, which is not included;
2. images per second of the data loader, relative to the estimated training speed on an H100: Mask R-CNN R50-FPN, a
   network of about as many operations, trains on 7.7 images per second and V100 (Detectron2's model zoo: 0.261 s for 16
   images on 8 GPUs), and an H100 is assumed to be four times as fast.
"""
MODEL = """Time the parts of a forward pass, compare with Mask2Former, and measure growth with patches and classes.

Rows of a table are measured in turns:

1. the parts of SAM-CP's forward pass, R50-FPN alone, and Mask2Former-R50 of transformers (`pip install -e '.[bench]'`);
2. merging patches into queries' masks, by RLEs and densely, as a maximum over float masks;
3. time and peak memory of everything after the FPN, for increasing numbers of patches and classes, with semantic
   queries for stuff or for all classes.

Weights are random, which changes no part's work but two. Merged boxes: a trained model's queries often share theirs, so
each instance query is given its own patch's box, moved in every layer for a third of the queries, so that a third of
all boxes are different ones (28 % in the demo's trained model). And the last scores: as after training, a query's
entity is its patch and those inside, and 30 instances and 10 regions pass the threshold.
"""

QUICK = {  # smaller options of `all --quick`
    "generation": "--model-type vit_b --measured-points-per-side 8 --memory-points --encoder-repeats 1",
    "store": "--images 60 --workers 1 2",
    "data": "--images 12",
    "model": "--size 320 448 --patches 60 --repeats 2 --more-patches 25 50 100 --more-classes",
}


def main() -> None:
    arguments = _parse(sys.argv[1:])
    if arguments.command == "all":
        options = {name: QUICK[name].split() if arguments.quick else [] for name in QUICK}
        runs = {name: _parse([name, *options[name]]) for name in QUICK}
    else:
        runs = {arguments.command: arguments}

    from samcp.commands import benchmark

    benchmark.main(runs, arguments)


def _parse(options: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    everything = commands.add_parser("all", help="all of the others")
    everything.add_argument("--quick", action="store_true", help="smaller runs, to try the command; no measurements")
    everything.set_defaults(measure=None)
    _add_generation(_add_command(commands, "generation", GENERATION))
    _add_store(_add_command(commands, "store", STORE))
    _add_data(_add_command(commands, "data", DATA))
    _add_model(_add_command(commands, "model", MODEL))
    for command in commands.choices.values():
        command.add_argument(
            "--report",
            type=Path,
            default=Path("output/benchmarks"),
            metavar="DIR",
            help="folder for the tables as Markdown and json (default %(default)s)",
        )
        command.add_argument("--update", type=Path, metavar="DIR", help="with benchmarks.md and benchmarks.json")
    arguments = parser.parse_args(options)
    if arguments.command == "all" and arguments.quick and arguments.update:
        parser.error("--quick measures too little for --update; remove one of them")
    return arguments


def _add_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text.partition("\n")[0].rstrip("."),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_generation(parser: argparse.ArgumentParser) -> None:
    models = ["tiny", "vit_b", "vit_l", "vit_h"]
    parser.add_argument("--model-type", nargs="+", choices=models, default=["vit_b", "vit_h"])
    parser.add_argument("--points-per-side", type=count, default=48, help="prompts (default %(default)s)")
    parser.add_argument(
        "--measured-points-per-side", type=count, help="points for which times are measured (default: all)"
    )
    parser.add_argument(
        "--memory-points",
        type=count,
        nargs="*",
        default=[32, 128],
        help="points per side of the memory table; no values: no table",
    )
    parser.add_argument(
        "--memory-prompts", type=count, default=192, help="prompts for which the decoder runs (default %(default)s)"
    )
    parser.add_argument("--survival", type=float, default=0.6, help="share of masks above the predicted-IoU threshold")
    parser.add_argument("--picture", default="coffee", help="name of a photograph in skimage.data")
    parser.add_argument("--repeats", type=int, default=1, help="runs, of which the fastest counts; 0: no time table")
    parser.add_argument("--encoder-repeats", type=int, default=3, help="likewise, of the encoder alone (default 3)")
    parser.add_argument("--threads", type=count, help="threads of PyTorch (default: PyTorch's default)")
    parser.add_argument("--measure", metavar="GENERATOR", help=argparse.SUPPRESS)  # memory, for a table of the parent


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=count, default=2000, help="in the cache (default %(default)s)")
    parser.add_argument("--patches", type=count, default=100, help="per image")
    parser.add_argument("--height", type=count, default=480)
    parser.add_argument("--width", type=count, default=640)
    parser.add_argument(
        "--reads", type=count, help="images read at random from each format (default: as many as images)"
    )
    parser.add_argument("--rounds", type=count, default=5, help="turns over which the reads are divided")
    parser.add_argument(
        "--workers", type=count, nargs="+", default=[1, 4], help="numbers of processes that read at once"
    )
    parser.add_argument("--output", type=Path, help="existing folder for the files, which are removed at the end")
    parser.set_defaults(measure=None)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="NAME", help="registered dataset (default: photographs of scikit-image)")
    parser.add_argument("--patches-cache", help="patch cache of --dataset, as in DATASETS.PATCHES_TRAIN")
    parser.add_argument(
        "--patches", type=count, default=150, help="patches per image of the default dataset (default %(default)s)"
    )
    parser.add_argument("--images", type=count, default=60, help="images to load (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="worker processes (default 0 2)")
    parser.set_defaults(measure=None)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=count, nargs=2, default=[800, 1088], metavar=("H", "W"), help="of the input")
    parser.add_argument("--patches", type=count, default=150)
    parser.add_argument("--classes", type=count, default=133)
    parser.add_argument("--more-patches", type=count, nargs="*", default=[50, 100, 200, 400, 800, 1600])
    parser.add_argument("--more-classes", type=count, nargs="*", default=[10, 100, 500, 1000, 2000])
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--threads", type=count, help="of PyTorch (default: its own choice)")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="of several GPUs, CUDA_VISIBLE_DEVICES selects one"
    )
    parser.add_argument(
        "--queries", default="stuff", choices=["stuff", "all"], help="which classes have a semantic one"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # one row of a table of the parent


if __name__ == "__main__":
    main()
