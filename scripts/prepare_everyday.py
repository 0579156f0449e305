#!/usr/bin/env python
"""Collect objects of COCO, BSDS500 and CCP as one dataset, for the model that segments photographs of any kind.

    python scripts/prepare_everyday.py

The folders coco, bsds500 and ccp are beside --folder (docs/datasets.md). Writes objects.yaml, which registers
everyday_train, everyday_things_train and everyday_composed_train, named.yaml, which registers everyday_named_train and
everyday_val with COCO's classes, words.yaml, which registers everyday_words_train and everyday_words_val, their json
files, and images with pasted objects.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="everyday").parse_args()

    from samcp.data.datasets.everyday.prepare import prepare_everyday
    from samcp.data.datasets.prepare_command import run

    run(prepare_everyday, arguments)


if __name__ == "__main__":
    main()
