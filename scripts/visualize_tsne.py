#!/usr/bin/env python
"""Draw a t-SNE of the features of patches, coloured by class and by instance (Fig. 3, 4 and 13).

    python scripts/visualize_tsne.py --weights model_final.pth --dataset synthetic_val \\
        --patches datasets/patches/synthetic_val

Compares the features of the backbone with those after the patch encoder. Labels are those of the ground truth: a patch
has the label of the region that it is inside of by 80 %. A plot proves nothing, so the silhouette of the labels in the
features is printed beside: 1 if they form separate clusters, about 0 if they are mixed. Writes a figure of all images
and one per image, and OUTPUT/index.html with all of them.
"""

import argparse
from pathlib import Path

from samcp.command_line import add_dataset_options, add_model_options, command_parser, count


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import visualize_tsne

    visualize_tsne.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_model_options(parser)
    add_dataset_options(parser)
    parser.add_argument("--images", nargs="+", default=[], metavar="KEY", help="keys of images, instead of the first")
    parser.add_argument("--limit", type=count, default=20, metavar="N", help="the first N images (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/tsne"), metavar="DIR", help="(default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
