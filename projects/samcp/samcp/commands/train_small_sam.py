"""Training of the small SAM on photographs, and validation of its patches."""

import argparse
import json
import os
from pathlib import Path

from proposal_cache.generators.sam import SamGenerator
from samcp.commands.evaluate_patches import validate
from samcp.contours.dataset import find_images
from samcp.contours.training import SHARES
from samcp.data.files import write_json
from samcp.errors import exit_with_message
from samcp.small_sam.data import DrawPhotographs
from samcp.small_sam.training import SamSchedule, SmallSamTrainer, measure, save_sam, validation_items

_VALIDATED = 20  # photographs of BSDS500 on which the curve is measured


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(interrupted="interrupted; repeat the same command to continue from the last checkpoint"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing in the output folder, then validate and print the figures."""
    output: Path = arguments.output
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    schedule = SamSchedule(
        iterations=arguments.iterations,
        batch=arguments.batch,
        lr=arguments.lr,
        backbone_lr=arguments.lr / 5,
        seed=arguments.seed,
        image_size=arguments.image_size,
        points=arguments.points,
    )
    trainer = SmallSamTrainer(DrawPhotographs(find_images(root, "train"), SHARES), schedule, output)
    items = validation_items(find_images(root, "val")["bsds500"][:_VALIDATED], schedule.image_size)
    weights = output / "sam_lite.pth"
    for iteration, losses in trainer.run(workers=arguments.workers, save_every=arguments.save_every):
        figures = measure(trainer.average, items)
        save_sam(weights, trainer.average)
        with (output / "log.jsonl").open("a") as log:
            log.write(json.dumps({"iteration": iteration, **losses, **figures}) + "\n")
    generator = SamGenerator.from_checkpoint(
        "lite",
        weights,
        points_per_side=arguments.points_per_side,
        pred_iou_thresh=arguments.pred_iou_thresh,
        stability_score_thresh=arguments.stability_score_thresh,
    )
    write_json(output / "validation.json", validate(generator, output / "patches", arguments.validate, arguments.limit))
    print(f"{weights}, {output / 'validation.json'}")
