"""Command line: samcp COMMAND."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from samcp import model_zoo
from samcp.command_line import command_parser

_DESCRIPTION = """\
Segment photographs by words, with the patches of Segment Anything or without a download.

    samcp segment photo.jpg --words "cat, sofa, wall~"
    samcp web
    samcp models
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with one message on an error that the user can fix."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "models":
        print(model_zoo.table())
        return

    importlib.import_module(f"samcp.commands.{parsed.command}").main(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(_DESCRIPTION)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    commands.add_parser("models", help="list the shipped models", description="List the models that are shipped.")
    _add_segment(
        commands.add_parser(
            "segment",
            help="segment photographs",
            description=_SEGMENT,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_web(
        commands.add_parser(
            "web",
            help="segment photographs in a browser",
            description=_WEB,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return parser


_SEGMENT = """\
Segment photographs by words.

    samcp segment photo.jpg
    samcp segment photos --words "kite, sea~, person: man | woman" --output result
    samcp segment photo.jpg --checkpoint sam_vit_h_4b8939.pth --clip convnext_large_d_320:laion2b_s29b_b131k_ft_soup

In the words, ~ marks stuff, which has no instances, and words after a colon are synonyms. The default model knows some
hundred words, or any with --clip; other models know the words of their training, or any with CLIP's text encoder.

Patches are made by the generator contours, or by SAM with --checkpoint, and kept in SAMCP_CACHE (default
~/.cache/samcp), so that the next call needs only the model. The output has a picture per image, KEY.jpg, a PNG of
segment ids, panoptic/KEY.png, and panoptic.json in COCO's format. For a model without instances, or with --task
semantic, it has label maps, semantic/KEY.png, with 255 for unlabeled pixels (with more than 255 classes: 16 bits,
65535); with --task instance, instances.json in COCO's result format.
"""


def _add_segment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders with their subfolders, or URLs")
    parser.add_argument(
        "--words",
        metavar="WORDS",
        help="classes separated by commas, a file with one class per line, or one of coco, ade20k, cityscapes, cod10k, "
        "pascal_part (default: the training classes; for samcp-everyday-lite those of COCO)",
    )
    parser.add_argument(
        "--task",
        choices=("panoptic", "instance", "semantic"),
        help="(default: panoptic, or semantic if the model has no instances)",
    )
    parser.add_argument("--patches", type=Path, metavar="DIR", help="patch cache of the images (default: make patches)")
    _add_model(parser)
    parser.add_argument("--output", type=Path, default=Path("result"), metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--open", action="store_true", help="show the first picture when done")


_WEB = """\
Segment photographs in a browser: upload one, type words, and click on the picture for both prompts.

    samcp web
    samcp web --weights model_final.pth --port 8000

The page can be opened on this machine only, unless --share makes a public address. It needs the extra "web":
pip install 'samcp[web]'.
"""


def _add_web(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--port", type=int, metavar="N", help="(default: the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="also make a public address through Gradio's servers")
    parser.add_argument("--open", action="store_true", help="open the page")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model and of the generator of patches."""
    parser.add_argument(
        "--weights",
        default=model_zoo.DEFAULT,
        metavar="NAME",
        help="name of a shipped model, checkpoint, or model file (default %(default)s)",
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="make patches by SAM with this checkpoint")
    parser.add_argument("--model-type", default="vit_h", metavar="NAME", help="of --checkpoint (default %(default)s)")
    parser.add_argument(
        "--clip",
        default="",
        metavar="[NAME:]FILE",
        help="CLIP checkpoint, if it was moved since training; or a model of open_clip and its file or tag, to name "
        "what the default model finds",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (default: cuda if there is a GPU)")


if __name__ == "__main__":
    main()
