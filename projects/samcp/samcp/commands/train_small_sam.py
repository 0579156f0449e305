"""Training of the small SAM on photographs or drawn scenes, and validation of its patches."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache.generators.sam import SamGenerator
from proposal_cache.generators.sam.lite_weights import SUFFIX, write_lite
from samcp.commands.evaluate_patches import validate
from samcp.contours.dataset import LabelMap, find_images
from samcp.contours.training import SHARES
from samcp.data.files import write_json
from samcp.errors import exit_with_message
from samcp.miniature.annotators import DrawScenes
from samcp.small_sam.data import Draw, DrawPhotographs
from samcp.small_sam.training import SamSchedule, SmallSamTrainer, measure, validation_items

_VALIDATED = 20  # images on which the curve is measured
_SCENES_SEED = 1  # of the drawn ones among them; training images have seeds of two numbers
# The trained layers are few, so that the weights are small; the others are those of the shipped contour network.
_SCENES_FROZEN = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.", "blocks.5.", "blocks.6.")


@dataclass(frozen=True)
class Images:
    """Images and parameters of a training.

    Attributes:
        draw: training images.
        validation: images with label maps, for the curve.
        datasets: default of --validate.
        defaults: of `SamSchedule`.
    """

    draw: Draw
    validation: Sequence[tuple[NDArray[np.uint8], list[LabelMap]]]
    datasets: Sequence[str]
    defaults: Mapping[str, Any]


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(interrupted="interrupted; repeat the same command to continue from the last checkpoint"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing in the output folder, then validate and print the figures."""
    output: Path = arguments.output
    images = {"photographs": _photographs, "scenes": _scenes}[arguments.images]()
    given = {name: getattr(arguments, name) for name in images.defaults if getattr(arguments, name, None) is not None}
    schedule = SamSchedule(
        batch=arguments.batch,
        lr=arguments.lr,
        backbone_lr=arguments.lr / 5,
        seed=arguments.seed,
        **{**images.defaults, **given},
    )
    trainer = SmallSamTrainer(images.draw, schedule, output, arguments.initial)
    items = validation_items(images.validation, schedule.image_size)
    weights = output / f"sam_lite{SUFFIX}"
    for iteration, losses in trainer.run(workers=arguments.workers, save_every=arguments.save_every):
        figures = measure(trainer.average, items)
        write_lite(weights, trainer.average)
        trainer.write_log(iteration, {**losses, **figures})
    write_lite(weights, trainer.average)  # if it was interrupted between its last checkpoint and here
    generator = SamGenerator.from_checkpoint(
        "lite",
        weights,
        points_per_side=arguments.points_per_side,
        pred_iou_thresh=arguments.pred_iou_thresh,
        stability_score_thresh=arguments.stability_score_thresh,
    )
    datasets = images.datasets if arguments.validate is None else arguments.validate
    write_json(output / "validation.json", validate(generator, output / "patches", datasets, arguments.limit))
    print(f"{weights}, {output / 'validation.json'}")


def _photographs() -> Images:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    return Images(
        DrawPhotographs(find_images(root, "train"), SHARES),
        [image.read() for image in find_images(root, "val")["bsds500"][:_VALIDATED]],
        ("coco_2017_train", "bsds500_val"),
        {"iterations": 12000, "image_size": 320, "points": 32},
    )


def _scenes() -> Images:
    draw = DrawScenes()
    return Images(
        draw,
        [draw(np.random.default_rng([_SCENES_SEED, 0, index])) for index in range(_VALIDATED)],
        ("miniature_val",),
        {"iterations": 3000, "image_size": 256, "points": 16, "frozen": _SCENES_FROZEN},
    )
