"""Command line: samcp COMMAND."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from samcp import model_zoo
from samcp.command_line import (
    add_check_options,
    add_confidence_option,
    add_training_options,
    command_parser,
    port,
)

_DESCRIPTION = """\
Segment photographs by words, with the patches of Segment Anything or without a download.

    samcp segment photo.jpg --words "cat, sofa, wall~"
    samcp web
    samcp models
    samcp check --register beach.yaml
    samcp train --register beach.yaml --config-file custom/semantic DATASETS.TRAIN "('beach_train',)"

samcp COMMAND --help explains a command.
"""

_EXPORT = """\
Export a trained model; the suffix of the target selects the format.

    samcp export output/run/model_final.pth model.safetensors
    samcp export --half output/run/model_final.pth model.safetensors MODEL.SAMCP.TEST.SCORE_THRESHOLD 0.4
    samcp export samcp-everyday-lite network.onnx

*.safetensors is a model file: weights, config and classes of a checkpoint, without optimizer state and without code.
--half writes half precision, and may change values of config keys, such as thresholds chosen after the training.

*.onnx and *.pt2 (torch.export) are the network alone, from image and patches to scores and affinities of the queries;
docs/export.md describes its inputs and outputs. *.npz beside it has the embeddings of the classes.
"""

_SEGMENT = """\
Segment photographs by words.

    samcp segment photo.jpg
    samcp segment photos --words "kite, sea~, person: man | woman" --output result
    samcp segment photo.jpg --checkpoint sam_vit_h_4b8939.pth --clip convnext_large_d_320:laion2b_s29b_b131k_ft_soup

In the words, ~ marks stuff, which has no instances, and words after a colon are synonyms. The default model knows 2,104
words, the names of ImageNet's classes and 263 everyday ones, or any with --clip; other models know the words of their
training, or any with CLIP's text encoder.

Patches are made by the generator contours, or by SAM with --checkpoint, and kept in SAMCP_CACHE (default
~/.cache/samcp), so that the next call needs only the model. The output has a picture per image, KEY.jpg, a PNG of
segment ids, panoptic/KEY.png, and panoptic.json in COCO's format. For a model without instances, or with --task
semantic, it has label maps, semantic/KEY.png, with 255 for unlabeled pixels (with more than 255 classes: 16 bits,
65535), and classes.json; with --task instance, instances.json in COCO's result format, and classes.json.

    samcp segment photo.jpg --task parts --parts "cup > espresso; person: man | woman > coat, hat"

finds the objects before each >, makes finer patches inside each of them, and finds its parts there. The default model
knows few names of parts; with --clip it knows any, such as "person > head, torso". The output has the format of
panoptic segmentation, with categories such as "cup espresso"; "part_of" is the id of the object.
"""

_TRAIN = """\
Train a model; the same as projects/samcp/train_net.py, with the options of Detectron2.

    samcp train --config-file coco/panoptic/samcp_R50_12ep --num-gpus 8
    samcp train --config-file miniature/demo OUTPUT_DIR output/tour SOLVER.MAX_ITER 500
"""

_EVAL = """\
Evaluate a model on the datasets of DATASETS.TEST; the same as projects/samcp/train_net.py --eval-only.

    samcp eval --config-file miniature/demo MODEL.WEIGHTS output/tour/model_final.pth
    samcp eval --config-file miniature/demo TEST.ORACLE True
"""

_CHECK = """\
Check datasets for errors that would stop or degrade training; the same as scripts/check_dataset.py.

    samcp check --register beach.yaml
    samcp check coco_2017_val_panoptic --patches datasets/coco/sam_patches/val2017
"""


# Command -> module of samcp.commands, imported when the command runs, since it needs PyTorch.
_MODULES = {
    "segment": "segment",
    "web": "web",
    "export": "export",
    "train": "train",
    "eval": "train",
    "check": "check_dataset",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with one message on an error that the user can fix."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "models":
        print(model_zoo.table())
    else:
        importlib.import_module(f"samcp.commands.{_MODULES[parsed.command]}").main(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(_DESCRIPTION)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=summary, description=description, formatter_class=formatter)

    _add_segment(add("segment", "segment photographs", _SEGMENT))
    _add_web(add("web", "segment photographs in a browser", _WEB))
    add("models", "list the shipped models", "List the models that are shipped.")
    for name, summary, description in (("train", "train a model", _TRAIN), ("eval", "evaluate a model", _EVAL)):
        options = add(name, summary, description)
        add_training_options(options)
        options.set_defaults(eval_only=name == "eval")
    add_check_options(add("check", "check a dataset", _CHECK))
    _add_export(add("export", "write a model as a model file, ONNX or torch.export program", _EXPORT))
    return parser


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="checkpoint; for *.onnx and *.pt2 also a model file, or a name of `samcp models`")
    parser.add_argument("target", type=Path, help="*.safetensors, *.onnx or *.pt2")
    parser.add_argument("--half", action="store_true", help="half precision, half the size; for *.safetensors")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change with --half")


def _add_segment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders with their subfolders, patterns in quotes such as 'photos/**/*.jpg', or URLs",
    )
    parser.add_argument(
        "--words",
        metavar="WORDS",
        help="classes separated by commas, a file with one class per line, or one of coco, ade20k, cityscapes, cod10k, "
        "pascal_part, as far as the model knows them (default: the training classes; for samcp-everyday-lite coco)",
    )
    parser.add_argument(
        "--task",
        choices=("panoptic", "instance", "semantic", "parts"),
        help="(default: panoptic, or semantic if the model has no instances)",
    )
    parser.add_argument(
        "--parts",
        metavar="WORDS",
        help="for --task parts: objects and their parts, as in 'cup > espresso; person: man | woman > coat, hat'",
    )
    add_confidence_option(parser)
    parser.add_argument("--patches", type=Path, metavar="DIR", help="patch cache of the images (default: make patches)")
    _add_model(parser)
    parser.add_argument("--output", type=Path, default=Path("result"), metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--open", action="store_true", help="show the first picture when done")


_WEB = """\
Segment photographs in a browser: upload one, type words, and click on the picture for both prompts.

    samcp web
    samcp web --weights model_final.pth --port 8000

The page can be opened on this machine only, unless --share makes a public address. It needs the extra "web":
pip install -e '.[web]' in the checkout.
"""


def _add_web(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--port", type=port, metavar="N", help="(default: the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="also make a public address through Gradio's servers")
    parser.add_argument("--open", action="store_true", help="open the page")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model and of the generator of patches."""
    parser.add_argument(
        "--weights",
        default=model_zoo.DEFAULT,
        metavar="NAME",
        help="name of a shipped model, checkpoint or model file, or its URL, which is downloaded once into SAMCP_CACHE "
        "(default %(default)s)",
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
