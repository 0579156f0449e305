#!/usr/bin/env python
"""Make of a checkpoint a file to hand on: weights, config and vocabulary in safetensors, without the optimiser's state.

    python scripts/convert_checkpoint.py output/run/model_final.pth model.safetensors
    python projects/samcp/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model.safetensors
    python scripts/convert_checkpoint.py model.safetensors --show

safetensors can hold no code, and its tensors are read without copying. A checkpoint of train_net.py is read with
PyTorch's weights_only, which runs none either.
"""

import argparse
import sys
from pathlib import Path

from samcp.checkpoint import CheckpointError
from samcp.model_file import SUFFIX, ModelFile


def main() -> None:
    arguments = _parse_arguments()
    try:
        if arguments.show:
            show(arguments.source)
        else:
            convert(arguments.source, arguments.target or arguments.source.with_suffix(SUFFIX))
    except CheckpointError as error:
        sys.exit(f"error: {error}")


def convert(source: Path, target: Path) -> None:
    """Write `target` and say how much smaller it is."""
    ModelFile.of_checkpoint(source).save(target)
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{source}: {before / 1e6:.1f} MB -> {target}: {after / 1e6:.1f} MB")
    show(target)


def show(path: Path) -> None:
    """Print what is in a model file."""
    model = ModelFile.load(path)
    names, is_thing = model.vocabulary.names, model.vocabulary.is_thing
    numbers = sum(tensor.numel() for tensor in model.tensors.values())
    print(f"{len(model.tensors)} tensors, {numbers / 1e6:.1f} M numbers")
    print(f"{len(names)} classes, {sum(is_thing)} of them things: {', '.join(names)}")
    print(f"config:\n{model.config}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a checkpoint of train_net.py")
    parser.add_argument("target", type=Path, nargs="?", help=f"default: beside the checkpoint, with {SUFFIX}")
    parser.add_argument("--show", action="store_true", help="say what is in a model file instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
