#!/usr/bin/env python
"""Learn words of the naming encoder "imagenet" from annotated regions: weights/imagenet_words.safetensors.

    export SAMCP_REGISTER=$DETECTRON2_DATASETS/everyday/named.yaml:$DETECTRON2_DATASETS/everyday/words.yaml
    python scripts/train_words.py --dataset everyday_named_train --dataset everyday_words_train \\
        --dataset camvid_train:10 --test everyday_val --test everyday_words_val \\
        --output output/imagenet_words.safetensors

Each word of projects/samcp/samcp/modeling/naming/words.txt that names a class of the datasets gets a correction of its
logit; the others keep that of ImageNet's classifier. Takes two minutes on one CPU core.
"""

import argparse
from pathlib import Path

from samcp.command_line import add_register_option, command_parser, count


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import train_words

    train_words.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--dataset",
        type=_dataset,
        action="append",
        required=True,
        metavar="NAME[:N]",
        help="to learn from, or every N-th image of it; may be repeated",
    )
    add_register_option(parser)
    parser.add_argument(
        "--test", action="append", default=[], metavar="NAME", help="dataset to measure the accuracy on; repeatable"
    )
    parser.add_argument(
        "--min-size", type=count, default=480, metavar="PIXELS", help="shorter side (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    return parser.parse_args()


def _dataset(text: str) -> tuple[str, int]:
    name, _, every = text.partition(":")
    return name, count(every or "1")


if __name__ == "__main__":
    main()
