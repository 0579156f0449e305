"""Options that several commands share. Imports nothing heavy, so that ``--help`` answers at once."""

import argparse
import os
from pathlib import Path

_MAX_PORT = 65535


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints a script's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_register_option(parser: argparse.ArgumentParser) -> None:
    """Add --register, a list of yaml files for :func:`samcp.data.datasets.custom.register.register_files`."""
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="YAML",
        help="definition of a dataset of your own (docs/datasets.md); may be repeated",
    )


def add_confidence_option(parser: argparse.ArgumentParser) -> None:
    """Add --confidence-threshold of Detectron2's demo."""
    parser.add_argument(
        "--confidence-threshold",
        type=fraction,
        metavar="X",
        help="minimum score of a segment or, with --task semantic, of a pixel's class, from 0 to 1 (default: the "
        "model's)",
    )


def add_strict_option(parser: argparse.ArgumentParser) -> None:
    """Add --strict, the same as the config key DATASETS.STRICT."""
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop if the generation of patches failed for an image (default: skip it in training, and count it as "
        "missed in evaluation)",
    )


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of Detectron2's ``default_argument_parser``, --strict and --register."""
    parser = command_parser(description)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS; do not train")
    add_training_options(parser)
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of train_net.py except --eval-only."""
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a file, or a name like miniature/demo.yaml"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    add_strict_option(parser)
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="repeat a training bit for bit, on the same machine: SEED is 0 if it is not given, and PyTorch uses "
        "deterministic algorithms, which are slower on a GPU",
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes per machine (default 1)")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="(default 1)")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="I", help="of this machine, from 0 (default 0)")
    parser.add_argument(
        "--dist-url",
        # As in Detectron2, one port per user, so that processes left over from a crash are noticed.
        default=f"tcp://127.0.0.1:{49152 + os.getuid() % 16384}",
        metavar="URL",
        help="of rank 0, or auto for a free port of this machine (default %(default)s)",
    )
    add_register_option(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values; last")


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts/check_dataset.py and `samcp check`."""
    parser.add_argument("datasets", nargs="*", help="registered datasets (default: all of --register)")
    add_register_option(parser)
    parser.add_argument("--patches", type=Path, metavar="DIR", help="patch cache (default: that of the yaml)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/check"),
        metavar="DIR",
        help="folder for the pages (default %(default)s)",
    )
    parser.add_argument(
        "--samples", type=whole_number, default=6, metavar="N", help="images to draw (default %(default)s)"
    )
    parser.add_argument(
        "--show", type=whole_number, default=50, metavar="N", help="problems to print (default %(default)s)"
    )
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="processes (default %(default)s)")


def conversion_parser(description: str | None, *, folder: str) -> argparse.ArgumentParser:
    """Return the parser of the commands that convert the release of a dataset.

    Args:
        description: text for --help.
        folder: default of --folder, under DETECTRON2_DATASETS.
    """
    parser = command_parser(description)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / folder,
        metavar="DIR",
        help="with the release (default %(default)s, where the registered datasets are looked up)",
    )
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="processes (default %(default)s)")
    return parser


def drawing_parser(description: str | None, *, folder: str, train: int, val: int) -> argparse.ArgumentParser:
    """Return the parser of the commands that draw a dataset.

    Args:
        description: text for --help.
        folder: default of --output, under DETECTRON2_DATASETS.
        train, val: default numbers of images.
    """
    parser = command_parser(description)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / folder,
        metavar="DIR",
        help="(default %(default)s, where the registered datasets are looked up)",
    )
    parser.add_argument("--train", type=int, default=train, metavar="N", help="training images (default %(default)s)")
    text = "images of each other split (default %(default)s)"
    parser.add_argument("--val", type=int, default=val, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`samcp.commands.inputs.load_predictor`."""
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="checkpoint, model file, or a name of `samcp models`"
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="default: the config in the checkpoint")
    parser.add_argument("--clip", default="", metavar="FILE", help="CLIP checkpoint, if it was moved since training")
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:N (default: cuda if there is a GPU)")


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`samcp.commands.inputs.load_images`."""
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="dataset registered in Detectron2 or by --register"
    )
    parser.add_argument("--patches", type=Path, required=True, metavar="DIR", help="patch cache")
    add_register_option(parser)


def count(text: str) -> int:
    """Parse a whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text!r}")
    return int(text)


def whole_number(text: str) -> int:
    """Parse a whole number of at least 0, for argparse."""
    return 0 if text == "0" else count(text)


def fraction(text: str) -> float:
    """Parse a number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def port(text: str) -> int:
    """Parse the number of a port, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_PORT:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 to {_MAX_PORT}, not {text!r}")
    return int(text)
