#!/usr/bin/env python
"""Convert checkpoints of the paper's released code into model files, and show model files.

    python scripts/convert_checkpoint.py released released.pth model.safetensors
    python scripts/convert_checkpoint.py show model.safetensors

"released" needs the config of the same model. Checkpoints are read with torch.load(weights_only=True), which runs no
code. `samcp export` writes model files from checkpoints of this project. To evaluate:

    python projects/samcp/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model.safetensors
"""

import argparse
from collections import Counter
from pathlib import Path

from samcp.command_line import command_parser

_CONFIG = "coco/panoptic/samcp_R50_12ep.yaml"
_SUFFIX = ".safetensors"


def main() -> None:
    arguments = _parse_arguments()

    from samcp.errors import exit_with_message

    with exit_with_message():
        if arguments.command == "show":
            from samcp.commands.export import show

            show(arguments.source)
        else:
            convert_released_checkpoint(arguments.source, arguments.target, arguments.config_file, arguments.opts)


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


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    released_parser = commands.add_parser("released", help="convert a checkpoint of the released code")
    released_parser.add_argument("source", type=Path, help="checkpoint or state dict of the released code")
    released_parser.add_argument("target", type=Path, help=f"model file, *{_SUFFIX}")
    released_parser.add_argument(
        "--config-file", default=_CONFIG, metavar="FILE", help="config of the same model (default %(default)s)"
    )
    released_parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys and values, as for train_net.py"
    )
    commands.add_parser("show", help="print the contents of a model file").add_argument("source", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
