"""Training of the small SAM: prompts, losses, figures, and the command on toy images."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from proposal_cache.generators.sam import SamGenerator
from proposal_cache.generators.sam.lite_weights import write_lite
from samcp.contours.dataset import UNKNOWN, LabelMap
from samcp.errors import CheckpointError
from samcp.small_sam.data import CELL, PromptDataset, PromptedImage, prompt_uniformly
from samcp.small_sam.losses import iou_loss, mask_iou, mask_loss, targets_by_size
from samcp.small_sam.training import SamSchedule, SmallSamTrainer, measure, moving_average
from tests.samcp.contours.test_contours import datasets  # noqa: F401

TINY = SamSchedule(iterations=4, batch=1, image_size=64, points=4)


def draw(random: np.random.Generator) -> tuple[NDArray[np.uint8], list[LabelMap]]:
    """Draw a red square on blue; the second annotator also divides the background, and leaves a strip out."""
    left = int(random.integers(5, 40))
    square = np.ones((60, 96), np.int32)
    square[20:50, left : left + 30] = 2
    halves = np.where((square == 1) & (np.arange(96) > 60), 3, square).astype(np.int32)
    halves[:4] = UNKNOWN
    image = np.where(square[..., None] == 2, [200, 60, 40], [60, 90, 160]) + random.integers(0, 20, (60, 96, 3))
    return image.astype(np.uint8), [square, halves]


def test_a_target_is_the_region_of_an_annotator_that_contains_the_point() -> None:
    items = PromptDataset(draw, length=6, image_size=64, points=16)
    for i in range(len(items)):
        item = items[i]
        side = 64 // CELL
        assert item.image.shape == (3, 64, 64)
        assert item.labels.shape[1:] == (side, side)
        column, row = ((item.points + 0.5) / CELL).floor().long().T
        assert (row * side + column).tolist() == item.cells.tolist()
        targets, exists = item.targets()
        assert exists.any(1).all(), "a point without a region"
        inside = targets.gather(2, item.cells[:, None, None].expand(-1, targets.shape[1], 1))[..., 0]
        assert (inside[exists] == 1).all()
        torch.testing.assert_close(items[i].points, item.points)  # the same at each reading


def test_padding_belongs_to_no_region() -> None:
    random = np.random.default_rng(0)
    item = prompt_uniformly(*draw(random), 96, 50, random)
    assert (item.labels[:, 60 // CELL :] == UNKNOWN).all()
    assert item.points[:, 1].max() < 60
    assert (item.image[:, 60:] == 127).all()


def test_small_regions_are_prompted_more_often_than_by_area() -> None:
    def dot(random: np.random.Generator) -> tuple[NDArray[np.uint8], list[LabelMap]]:
        regions = np.ones((64, 64), np.int32)
        regions[30:38, 30:38] = 2
        return np.zeros((64, 64, 3), np.uint8), [regions]

    items = PromptDataset(dot, length=40, image_size=64, points=32)
    hits = torch.stack([item.labels[0].flatten()[item.cells] == 2 for item in map(items.__getitem__, range(40))])
    share = hits.float().mean().item()
    assert share > 3 * 8 * 8 / 64**2


def test_masks_learn_regions_in_ascending_size() -> None:
    masks = torch.tensor([[[9.0, -9, -9, -9], [9, 9, -9, -9], [9, 9, 9, 9]]]) * 4
    part, half, whole = (torch.tensor(m, dtype=torch.float32) for m in ([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]))
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    assert mask_loss(masks, torch.stack([whole, part, half])[None], everywhere) < 0.01
    assert mask_loss(masks.flip(1), torch.stack([whole, part, half])[None], everywhere) > 0.3
    without_half = torch.tensor([[True, True, False]])
    found = targets_by_size(torch.stack([whole, part, half])[None], without_half, 3)
    assert found[0, [0, 2]].tolist() == torch.stack([part, whole]).tolist()
    alone = torch.tensor([[False, True, False]])
    assert targets_by_size(torch.stack([whole, part, half])[None], alone, 3).tolist() == [[part.tolist()] * 3]


def test_predicted_iou_is_that_of_the_best_annotator() -> None:
    logits = torch.tensor([[[1.0, 1, -1, -1], [-1, -1, -1, 1]]])
    targets = torch.tensor([[[1.0, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]])
    iou = mask_iou(logits, targets, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(iou, torch.tensor([[[1 / 2, 2 / 3, 0], [1 / 4, 0, 0]]]))
    assert iou_loss(torch.tensor([[2 / 3, 1 / 4]]), iou) == 0


def test_moving_average_forgets_the_initial_weights() -> None:
    average = torch.zeros(1)
    for count in range(1, 101):
        average = moving_average(average, torch.ones(1), count)
    assert average > 0.999
    assert moving_average(torch.zeros(1), torch.ones(1), 1_000_000) == pytest.approx(0.002)


def test_resumed_training_equals_undisturbed(tmp_path: Path) -> None:
    whole = SmallSamTrainer(draw, TINY, tmp_path / "whole")
    losses = dict(whole.run(workers=0, save_every=2))
    next(SmallSamTrainer(draw, TINY, tmp_path / "half").run(workers=0, save_every=2))
    rest = SmallSamTrainer(draw, TINY, tmp_path / "half")
    resumed = dict(rest.run(workers=0, save_every=2))
    assert list(resumed) == [4]
    assert resumed[4] == pytest.approx(losses[4], rel=1e-4)
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(rest.average.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)
    with pytest.raises(CheckpointError, match="points"):
        SmallSamTrainer(draw, SamSchedule(iterations=4, batch=1, image_size=64, points=5), tmp_path / "half")


def test_losses_are_means_of_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    undisturbed = dict(SmallSamTrainer(draw, TINY, tmp_path / "whole").run(workers=0, save_every=1))
    next(SmallSamTrainer(draw, TINY, tmp_path / "half").run(workers=0, save_every=1))
    resumed = dict(SmallSamTrainer(draw, TINY, tmp_path / "half").run(workers=0, save_every=2))
    assert resumed[2] == pytest.approx(undisturbed[2], rel=1e-4)
    assert resumed[4] == pytest.approx({name: (undisturbed[3][name] + undisturbed[4][name]) / 2 for name in resumed[4]})


def test_training_starts_from_given_weights_of_another_input_size(tmp_path: Path) -> None:
    first = SmallSamTrainer(draw, TINY, tmp_path / "first")
    write_lite(tmp_path / "first.safetensors", first.network)
    second = SmallSamTrainer(
        draw, replace(TINY, image_size=96, seed=1), tmp_path / "second", tmp_path / "first.safetensors"
    )
    weights, expected = second.network.state_dict(), first.network.state_dict()
    assert weights.pop("image_encoder.image_size") == 96
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], atol=1e-3, rtol=1e-3, msg=name)
    (tmp_path / "other").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="other: not weights of the model type lite"):
        SmallSamTrainer(draw, TINY, tmp_path / "third", tmp_path / "other")


@pytest.mark.slow
def test_model_learns_one_image_and_the_generator_loads_it(tmp_path: Path) -> None:
    def same(_: np.random.Generator) -> tuple[NDArray[np.uint8], list[LabelMap]]:
        return draw(np.random.default_rng(0))

    image, maps = same(np.random.default_rng())
    items: list[PromptedImage] = [prompt_uniformly(image, maps, 64, 32, np.random.default_rng(1))]
    schedule = SamSchedule(iterations=300, batch=1, lr=8e-4, image_size=64, points=16)
    trainer = SmallSamTrainer(same, schedule, tmp_path)
    list(trainer.run(workers=0, save_every=300))
    figures = measure(trainer.network, items)
    assert figures["best_iou"] > 0.9
    assert figures["chosen_iou"] > 0.7
    assert figures["stable_best"] > 0.7

    write_lite(tmp_path / "sam_lite.safetensors", trainer.network)
    generator = SamGenerator.from_checkpoint(
        "lite", tmp_path / "sam_lite.safetensors", points_per_side=6, pred_iou_thresh=0.5, stability_score_thresh=0.5
    )
    assert generator.sam.image_encoder.img_size == 64
    patches = generator(image)
    masks = patches.decode().astype(bool)
    square = maps[0] == 2
    best = max((mask & square).sum() / (mask | square).sum() for mask in masks)
    assert best > 0.5


def test_command_trains_validates_and_continues(datasets: Path, tmp_path: Path) -> None:  # noqa: F811
    command = [sys.executable, "scripts/train_small_sam.py", "--output", str(tmp_path), "--validate", "bsds500_val"]
    command += ["--iterations", "2", "--batch", "1", "--image-size", "64", "--points-per-side", "2"]
    command += ["--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr[-2000:]
    assert runs[0].stdout == runs[1].stdout
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["iteration"] == 2
    assert 0 <= line["best_iou"] <= 1
    validation = json.loads((tmp_path / "validation.json").read_text())
    assert validation["bsds500_val"]["images"] == 2
    assert validation["bsds500_val"]["patches_per_image"] > 0


def test_command_trains_on_scenes_without_any_dataset(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/train_small_sam.py", "--images", "scenes", "--output", str(tmp_path)]
    command += ["--iterations", "2", "--batch", "1", "--image-size", "64", "--points", "4", "--validate"]
    subprocess.run(command, check=True, capture_output=True)
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 0 <= line["best_iou"] <= 1
    generator = SamGenerator.from_checkpoint("lite", tmp_path / "sam_lite.safetensors")
    assert generator.sam.image_encoder.img_size == 64
    assert (tmp_path / "sam_lite.safetensors").stat().st_size < 5e6, "frozen layers were saved"
