#!/usr/bin/env python
"""Convert checkpoints into model files: weights, config and vocabulary in safetensors.

    python scripts/convert_checkpoint.py export output/run/model_final.pth model.safetensors
    python scripts/convert_checkpoint.py export --half output/run/model_final.pth model.safetensors KEY VALUE ..
    python scripts/convert_checkpoint.py released released.pth model.safetensors
    python scripts/convert_checkpoint.py show model.safetensors

A model file is smaller than a checkpoint, since it has no optimizer state, and cannot contain code. With --half, it is
in half precision, and may have other values of config keys, such as thresholds chosen after the training. To evaluate:

    python projects/samcp/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model.safetensors

"released" converts a checkpoint of the paper's released code, given the config of the same model. Checkpoints are read
with torch.load(weights_only=True), which runs no code.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from samcp.command_line import command_parser

_CONFIG = "coco/panoptic/samcp_R50_12ep.yaml"
_SUFFIX = ".safetensors"


def main() -> None:
    arguments = _parse_arguments()

    from samcp.errors import CheckpointError, UsageError

    try:
        if arguments.command == "show":
            show(arguments.source)
        elif arguments.command == "export":
            target = arguments.target or arguments.source.with_suffix(_SUFFIX)
            export(arguments.source, target, half=arguments.half, opts=arguments.opts)
        else:
            convert_released_checkpoint(arguments.source, arguments.target, arguments.config_file, arguments.opts)
    except (CheckpointError, UsageError) as error:
        sys.exit(f"error: {error}")


def export(source: Path, target: Path, *, half: bool = False, opts: Sequence[str] = ()) -> None:
    """Write a checkpoint of train_net.py as a model file, and print both sizes."""
    from samcp.errors import UsageError
    from samcp.export import ModelFile

    if opts and not half:
        raise UsageError(f"{' '.join(opts)}: config keys are changed with --half only")
    model = ModelFile.of_checkpoint(source)
    (model.for_release(opts) if half else model).save(target)
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{source}: {before / 1e6:.1f} MB -> {target}: {after / 1e6:.1f} MB")
    show(target)


def convert_released_checkpoint(source: Path, target: Path, config_file: str, opts: list[str]) -> None:
    """Write a checkpoint of the released code as a model file, and print its unused modules."""
    from detectron2.engine import default_argument_parser

    from samcp.config import load_config
    from samcp.released import released_model

    options = ["--config-file", config_file, "--eval-only", "MODEL.DEVICE", "cpu", *opts]
    model, unused = released_model(source, load_config(default_argument_parser().parse_args(options)))
    model.save(target)
    modules = Counter(".".join(name.split(".")[:2]) for name in unused)
    print(f"{source}: {len(model.tensors)} tensors -> {target}")
    print(f"not used: {', '.join(f'{name} ({count})' for name, count in sorted(modules.items())) or 'none'}")


def show(path: Path) -> None:
    """Print the contents of a model file."""
    from samcp.export import ModelFile

    model = ModelFile.load(path)
    names, is_thing = model.vocabulary.names, model.vocabulary.is_thing
    numbers = sum(tensor.numel() for tensor in model.tensors.values())
    print(f"{len(model.tensors)} tensors, {numbers / 1e6:.1f} M parameters")
    print(f"{len(names)} classes, {sum(is_thing)} of them things: {', '.join(names)}")
    print(f"config:\n{model.config}")


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export_parser = commands.add_parser("export", help="convert a checkpoint of train_net.py")
    export_parser.add_argument("source", type=Path, help="checkpoint of train_net.py")
    export_parser.add_argument(
        "target", type=Path, nargs="?", help=f"model file (default: the checkpoint's path with {_SUFFIX})"
    )
    export_parser.add_argument("--half", action="store_true", help="half precision, half the size")
    export_parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to change")
    released_parser = commands.add_parser("released", help="convert a checkpoint of the released code")
    released_parser.add_argument("source", type=Path, help="checkpoint or state dict of the released code")
    released_parser.add_argument("target", type=Path, help=f"model file, *{_SUFFIX}")
    released_parser.add_argument(
        "--config-file", default=_CONFIG, metavar="FILE", help="config of the same model (default %(default)s)"
    )
    released_parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    commands.add_parser("show", help="print the contents of a model file").add_argument("source", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
