"""Training of the small CLIP on drawn scenes, and its zero-shot accuracy."""

import argparse
import json
from pathlib import Path
from typing import Any

import open_clip
from detectron2.config import get_cfg

from samcp.config import add_samcp_config
from samcp.data.files import write_json
from samcp.errors import exit_with_message
from samcp.miniature import small_clip
from samcp.miniature.clip_training import ClipSchedule, SmallClipTrainer, measure
from samcp.miniature.world import CLASSES
from samcp.model_zoo import SMALL_CLIP
from samcp.modeling.class_embedding import encode_words

_SIZE = 512  # at which regions are pooled for the curve


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(interrupted="interrupted; repeat the same command to continue from the last checkpoint"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing in the output folder, then measure the accuracy and print it."""
    output: Path = arguments.output
    schedule = ClipSchedule(
        iterations=arguments.iterations,
        batch=arguments.batch,
        crops=arguments.crops,
        lr=arguments.text_lr,
        backbone_lr=arguments.lr,
        seed=arguments.seed,
    )
    trainer = SmallClipTrainer(schedule, output)
    weights = output / "clip_lite.safetensors"
    for iteration, losses in trainer.run(workers=arguments.workers, save_every=arguments.save_every):
        figures = _accuracy(trainer.network, "open_val", arguments.curve_scenes, (_SIZE,))
        small_clip.save_weights(weights, trainer.network)
        trainer.write_log(iteration, {**losses, **figures})
    small_clip.save_weights(weights, trainer.network)  # if it was interrupted between its last checkpoint and here
    model = small_clip.load_weights(weights)
    found: dict[str, Any] = {
        style: _accuracy(model, style, arguments.scenes, schedule.sizes) for style in ("open_val", "shifted_val")
    }
    write_json(output / "accuracy.json", found)
    print(json.dumps(found, indent=2))
    print(f"{weights}, {output / 'accuracy.json'}")


def _accuracy(model: open_clip.CLIP, style: str, scenes: int, sizes: tuple[int, ...]) -> dict[str, float]:
    """Return the accuracy with the default prompts; see `measure`."""
    cfg = get_cfg()
    add_samcp_config(cfg)
    model.eval()
    tokenizer = open_clip.get_tokenizer(SMALL_CLIP)
    classes = encode_words(model, tokenizer, CLASSES, cfg.MODEL.SAMCP.TEXT.PROMPTS)
    return measure(model, classes, scenes=scenes, style=style, sizes=sizes)
