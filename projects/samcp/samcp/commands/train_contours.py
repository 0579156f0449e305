"""Training of the generator `contours`: network, cost of merges, validation."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from proposal_cache.generators.contours import ContourGenerator
from proposal_cache.generators.contours.generator import resize_labels
from proposal_cache.generators.contours.graph import FloatArray
from proposal_cache.generators.contours.hierarchy import Perceptron, build_hierarchy, pair_features
from proposal_cache.generators.contours.weights import save_weights
from samcp.commands.evaluate_patches import validate
from samcp.contours.covering import best_scales, covering
from samcp.contours.dataset import SegmentedImage, find_images
from samcp.contours.merging import PairSamples, fit_cost, sample_pairs
from samcp.contours.training import SHARES, ContourSchedule, ContourTrainer
from samcp.data.files import write_json
from samcp.errors import CheckpointError, exit_with_message

_LEVELS = 40  # heights at which the covering is computed
_ROUNDS = 2  # of sampling pairs from the hierarchy of the last cost
_OPTIONS = ("iterations", "batch", "seed", "pair_images")  # in the metadata of the weights


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(interrupted="interrupted; repeat the same command to continue from the last checkpoint"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing in the output folder, then validate and print the figures."""
    output: Path = arguments.output
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    weights = output / "contours.safetensors"
    options = {name: str(getattr(arguments, name)) for name in _OPTIONS}
    if weights.exists():
        _check_options(weights, options)
    images = find_images(root, "train")
    trainer = ContourTrainer(
        images, ContourSchedule(iterations=arguments.iterations, batch=arguments.batch, seed=arguments.seed), output
    )
    for iteration, losses in trainer.run(workers=arguments.workers):
        trainer.write_log(iteration, losses)
    if not weights.exists():
        cost = _train_cost(trainer, _draw(images, arguments.pair_images, arguments.seed), output, arguments.seed)
        save_weights(weights, trainer.network, cost, options)
    generator = ContourGenerator(weights=weights)
    results = validate(generator, output / "patches", arguments.validate, arguments.limit)
    ods, ois = _measure_covering(generator, find_images(root, "val")["bsds500"][: arguments.limit])
    print(f"covering of bsds500 val: {ods:.3f} at the best common scale, {ois:.3f} at the best scale of each image")
    write_json(output / "validation.json", results | {"bsds500 covering": {"ODS": ods, "OIS": ois}})
    print(f"{weights}, {output / 'validation.json'}")


def _check_options(weights: Path, options: Mapping[str, str]) -> None:
    """Raise CheckpointError if the weights are of an earlier run with other options."""
    try:
        with safe_open(weights, "np") as file:
            before = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights}: damaged ({error}); delete it to write it again") from error
    for name, value in options.items():
        found = before.get(name, "(unknown)")
        if found != value:
            raise CheckpointError(
                f"{weights} was written with --{name.replace('_', '-')} {found}, not {value}; use the same options, or "
                "delete it to write it again"
            )


def _draw(images: dict[str, list[SegmentedImage]], count: int, seed: int) -> list[SegmentedImage]:
    """Return random images of each dataset, by their shares in training."""
    random = np.random.default_rng(seed)
    drawn: list[SegmentedImage] = []
    for name, share in SHARES.items():
        order = random.permutation(len(images[name]))[: round(share * count)]
        drawn += [images[name][i] for i in order]
    return drawn


def _train_cost(trainer: ContourTrainer, images: Sequence[SegmentedImage], output: Path, seed: int) -> Perceptron:
    """Return the cost of merges, trained on pairs of the hierarchies of an untrained cost, then of itself."""
    cost = _mean_strength()
    samples: list[PairSamples] = []
    for number in range(_ROUNDS):
        draft = output / "draft.safetensors"
        save_weights(draft, trainer.network, cost)
        generator = ContourGenerator(weights=draft)
        draft.unlink()
        random = np.random.default_rng([seed, number])
        for image in tqdm(images, f"pairs of regions, round {number + 1}/{_ROUNDS}", unit="image"):
            pixels, segmentations = image.read()
            graph, leaves = generator.graph(pixels)
            hierarchy = build_hierarchy(graph, generator.cost(leaves.size))
            resized = [resize_labels(regions, *leaves.shape) for regions in segmentations]
            samples.append(sample_pairs(graph, hierarchy.children, leaves, resized, random))
        cost = fit_cost(PairSamples.concatenate(samples), seed=seed)
    return cost


def _mean_strength() -> Perceptron:
    """Return the cost that rises with the mean boundary strength and the distance of embeddings, and nothing else."""
    features = pair_features(np.ones((1, 41)), np.ones((1, 41)), np.ones((1, 3)), 1).shape[1]
    hidden = np.zeros((features, 1))
    hidden[0], hidden[2] = 8.0, 1.0
    return Perceptron(hidden, np.zeros(1), np.ones(1), -4.0)


def _measure_covering(generator: ContourGenerator, images: Sequence[SegmentedImage]) -> tuple[float, float]:
    found = []
    for image in tqdm(images, "covering", unit="image"):
        pixels, segmentations = image.read()
        graph, leaves = generator.graph(pixels)
        hierarchy = build_hierarchy(graph, generator.cost(leaves.size))
        found.append((hierarchy, resize_labels(leaves, *pixels.shape[:2]), segmentations))
    heights: FloatArray = np.quantile(np.concatenate([h.heights[-30:] for h, *_ in found]), np.linspace(0, 1, _LEVELS))
    return best_scales(np.array([covering(*one, heights) for one in found]))
