#!/usr/bin/env python
"""Segment images with a model and its config, by the convention of Detectron2's demo; `samcp segment` has more options.

    python projects/samcp/demo.py --input photo.jpg --output result
    python projects/samcp/demo.py --config-file configs/coco/panoptic/samcp_R50_12ep.yaml --input *.jpg \\
        --confidence-threshold 0.4 --opts MODEL.WEIGHTS model_final.pth
"""

import argparse
from pathlib import Path

from samcp import model_zoo
from samcp.command_line import add_confidence_option, command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import segment

    segment.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", metavar="FILE", help="default: that of the shipped model " + model_zoo.DEFAULT)
    parser.add_argument("--input", nargs="+", required=True, dest="images", metavar="IMAGE", help="files or folders")
    parser.add_argument("--output", type=Path, default=Path("result"), metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--words", help="see samcp segment --help")
    add_confidence_option(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; last")
    defaults = {"weights": model_zoo.DEFAULT, "patches": None, "checkpoint": None, "clip": "", "device": "auto"}
    parser.set_defaults(**defaults, task=None, parts=None, open=False, eval_only=True)
    arguments = parser.parse_args()
    if arguments.opts and not arguments.config_file:
        parser.error("--opts needs --config-file")
    return arguments


if __name__ == "__main__":
    main()
