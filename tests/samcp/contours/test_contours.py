"""Training of the contour generator: targets, losses, cost of merges, covering, and the command on toy images."""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proposal_cache.generators.contours import ContourGenerator
from proposal_cache.generators.contours.graph import region_graph
from proposal_cache.generators.contours.hierarchy import Hierarchy, build_hierarchy
from proposal_cache.generators.contours.network import ContourNetwork
from proposal_cache.generators.contours.weights import load_weights, save_weights
from samcp.commands import train_contours
from samcp.contours.covering import best_scales, covering
from samcp.contours.dataset import ContourDataset, SegmentedImage, boundary_targets, find_images
from samcp.contours.merging import PairSamples, fit_cost, sample_pairs
from samcp.contours.training import ContourSchedule, ContourTrainer, boundary_loss, embedding_loss
from samcp.errors import CheckpointError, DataError
from samcp.photo_patches import generator_hash

TINY = ContourSchedule(iterations=4, batch=2, crop=64)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each training dataset: a square on a background."""
    root = tmp_path_factory.mktemp("datasets")
    random = np.random.default_rng(0)
    for split, name, number in itertools.product(("train", "val"), ("bsds500", "ccp", "camvid"), range(2)):
        left = int(random.integers(5, 40))
        labels = np.zeros((80, 96), np.uint8)
        labels[20:60, left : left + 40] = 1
        image = np.where(labels[..., None] == 1, [200, 60, 40], [60, 90, 160]) + random.integers(0, 20, (80, 96, 3))
        suffix = ".jpg" if name == "bsds500" else ".png"
        write(root / name / "images" / split / f"{number}{suffix}", image.astype(np.uint8))
        if name == "bsds500":
            for annotator in range(2):
                write(root / name / "segmentations" / split / f"{number}_{annotator}.png", labels + 1)
        else:
            write(root / name / "annotations" / split / f"{number}.png", labels)
    return root


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_boundary_targets_against_loops() -> None:
    random = np.random.default_rng(0)
    maps = [random.integers(1, 3, (6, 8)).astype(np.int32) for _ in range(3)]
    share, known = boundary_targets(maps)
    expected = np.zeros((3, 6, 8))
    for m, (y, x) in itertools.product(range(3), itertools.product(range(6), range(8))):
        around = [(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)]
        expected[m, y, x] = any(0 <= v < 6 and 0 <= u < 8 and maps[m][v, u] != maps[m][y, x] for v, u in around)
    pooled = expected.reshape(3, 3, 2, 4, 2).max((2, 4)).mean(0)
    np.testing.assert_allclose(share, pooled)
    assert (known == 1).all()


def test_boundaries_far_from_known_regions_are_unknown() -> None:
    regions = np.zeros((40, 40), np.int32)
    regions[:4] = 1
    _, known = boundary_targets([regions])
    assert (known[:4] == 1).all()
    assert (known[5:] == 0).all()


def test_dataset_items(datasets: Path) -> None:
    images = find_images(datasets, "train")
    assert {name: len(found) for name, found in images.items()} == {"bsds500": 2, "ccp": 2, "camvid": 2}
    items = ContourDataset(images["bsds500"], [1, 1], length=8, crop=64)
    for i in range(len(items)):
        item = items[i]
        assert item["image"].shape == (3, 64, 64)
        assert item["boundary"].shape == item["known"].shape == (32, 32)
        assert item["regions"].shape == (4, 16, 16)
        assert item["regions"].min() >= 1
        torch.testing.assert_close(items[i], item)  # the same at each reading


def test_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bsds500"):
        find_images(tmp_path, "train")


def test_folder_without_images_is_named(datasets: Path, tmp_path: Path) -> None:
    for name in ("bsds500", "camvid"):
        (tmp_path / name).symlink_to(datasets / name)
    (tmp_path / "ccp/images/train").mkdir(parents=True)
    with pytest.raises(DataError, match="no images in .*ccp/images/train"):
        find_images(tmp_path, "train")


def test_unknown_pixels_have_no_region(datasets: Path) -> None:
    file = datasets / "ccp/annotations/train/0.png"
    _, maps = SegmentedImage(datasets / "ccp/images/train/0.png", (file,), unknown=0).read()
    assert sorted(np.unique(maps[0])) == [0, 1]


def test_boundary_loss_balances_both_classes() -> None:
    share, known = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    share[0, 0, 0] = 1
    known[0, 3] = 0
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    loss = boundary_loss(logits, share, known)
    assert loss.item() == pytest.approx(np.log(2))
    loss.backward()
    gradient = logits.grad
    assert gradient is not None
    assert gradient[0, 0, 0].item() == pytest.approx(-gradient.clamp(min=0).sum().item())
    assert (gradient[0, 3] == 0).all()


def test_embedding_loss_falls_when_regions_separate() -> None:
    network = ContourNetwork()
    regions = torch.ones(1, 2, 16, 16, dtype=torch.long)
    regions[:, :, :, 8:] = 2
    flat, apart = torch.zeros(1, 16, 16, 16), torch.zeros(1, 16, 16, 16)
    apart[:, 0, :, 8:] = 3.0
    torch.manual_seed(0)
    assert embedding_loss(network, apart, regions) < 0.3 < embedding_loss(network, flat, regions)
    assert embedding_loss(network, flat, torch.zeros_like(regions)) == 0  # nothing is known


def test_resumed_training_equals_undisturbed(datasets: Path, tmp_path: Path) -> None:
    images = find_images(datasets, "train")
    whole = ContourTrainer(images, TINY, tmp_path / "whole")
    losses = dict(whole.run(workers=0, save_every=2))
    half = ContourTrainer(images, TINY, tmp_path / "half")
    next(half.run(workers=0, save_every=2))
    rest = ContourTrainer(images, TINY, tmp_path / "half")
    resumed = dict(rest.run(workers=0, save_every=2))
    assert list(resumed) == [4]
    assert resumed[4]["boundary"] == pytest.approx(losses[4]["boundary"], rel=1e-4)
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(rest.network.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_checkpoint_of_another_schedule_is_rejected(datasets: Path, tmp_path: Path) -> None:
    images = find_images(datasets, "train")
    list(ContourTrainer(images, TINY, tmp_path).run(workers=0))
    with pytest.raises(CheckpointError, match="iterations"):
        ContourTrainer(images, ContourSchedule(iterations=5, batch=2, crop=64), tmp_path)


def test_cost_of_merges_learns_which_neighbours_belong_together() -> None:
    random = np.random.default_rng(0)
    leaves = np.kron(np.arange(64).reshape(8, 8), np.ones((6, 6), np.int64)).astype(np.int64)
    truth = np.where(np.arange(48) < 24, 1, 2)[None].repeat(48, 0).astype(np.int32)
    lab = np.where(truth == 1, 30.0, 60.0)[None].repeat(3, 0).astype(np.float32)
    boundary = (np.abs(np.arange(48) - 23.5) < 1)[None].repeat(48, 0).astype(np.float32) + 0.2
    graph = region_graph(lab, leaves, boundary, random.random((4, 12, 12)).astype(np.float32))
    hierarchy = build_hierarchy(graph, lambda one, others, borders: borders[:, 1] / borders[:, 0])
    samples = sample_pairs(graph, hierarchy.children, leaves, [truth], random)
    first = samples.different[samples.features[:, 4] > 1]  # of different colour
    assert (first == 1).all()
    assert set(np.round(samples.weights, 6)) == {1.0}
    cost = fit_cost(PairSamples.concatenate([samples, samples]))
    logits = cost(samples.features)
    assert logits[samples.different > 0.9].min() > logits[samples.different < 0.1].max()


def test_covering_against_loops() -> None:
    # Leaves 0..3 in columns; merges: 0 + 1, 2 + 3, all.
    leaves = np.arange(4)[None].repeat(3, 0)
    hierarchy = Hierarchy(
        np.array([3.0, 3, 3, 3, 6, 6, 12]), np.array([(0, 1), (2, 3), (4, 5)]), np.array([1.0, 2.0, 3.0])
    )
    segmentations = [np.array([[1, 1, 2, 2]]).repeat(3, 0), np.array([[1, 2, 2, 2]]).repeat(3, 0)]
    found = covering(hierarchy, leaves, segmentations, np.array([0.5, 1.0, 2.0, 3.0]))
    levels = [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 0, 0]]
    for value, level in zip(found, levels, strict=True):
        regions = np.array(level)[leaves]
        expected = []
        for truth in segmentations:
            best = [
                max(((regions == r) & (truth == t)).sum() / ((regions == r) | (truth == t)).sum() for r in set(level))
                * (truth == t).sum()
                for t in np.unique(truth)
            ]
            expected.append(sum(best) / truth.size)
        assert value == pytest.approx(np.mean(expected))
    assert best_scales(np.array([[0.2, 0.6], [0.8, 0.5]])) == pytest.approx((0.55, 0.7))


def test_command_trains_validates_and_continues(datasets: Path, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/train_contours.py", "--output", str(tmp_path), "--validate", "bsds500_val"]
    command += ["--iterations", "2", "--batch", "1", "--pair-images", "6"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr[-2000:]
    outputs = [run.stdout for run in runs]
    assert outputs[0] == outputs[1]
    assert "covering of bsds500 val" in outputs[0]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in log] == [2]
    validation = json.loads((tmp_path / "validation.json").read_text())
    assert validation["bsds500_val"]["images"] == 2
    assert 0 < validation["bsds500 covering"]["ODS"] <= 1
    [folder] = (tmp_path / "patches").iterdir()  # one for each version of the weights
    assert folder.name == generator_hash(ContourGenerator(weights=tmp_path / "contours.safetensors"))
    assert load_weights(tmp_path / "contours.safetensors", "cpu").merge.hidden.shape == (11, 16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pair_images": "6"}, "--pair-images 6, not 7"),
        ({"iterations": "8"}, "--iterations 8, not 2"),
        ({"seed": None}, "--seed .unknown., not 0"),
    ],
)
def test_weights_of_other_options_are_not_reused(tmp_path: Path, changed: dict[str, str | None], message: str) -> None:
    shipped = load_weights(None, "cpu")
    weights = tmp_path / "contours.safetensors"
    options = {"iterations": 2, "batch": 1, "seed": 0, "pair_images": 7}
    written = {name: str(value) for name, value in ({**options} | changed).items() if value is not None}
    save_weights(weights, shipped.network, shipped.merge, written)
    arguments = argparse.Namespace(output=tmp_path, **options)
    with pytest.raises(CheckpointError, match=rf"written with {message}; .*delete it"):
        train_contours.run(arguments)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"contours\.safetensors: damaged .*; delete it"):
        train_contours.run(arguments)
