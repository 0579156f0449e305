"""Training of the learned words of samcp.modeling.naming on annotated regions."""

import argparse
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from torch import Tensor, nn
from tqdm import tqdm

from proposal_cache.generation.sources import read_image
from samcp.data.build import load_dataset
from samcp.data.datasets.custom.register import register_files
from samcp.data.ground_truth import read_ground_truth
from samcp.errors import DataError, exit_with_message
from samcp.modeling.naming.imagenet import ImageNetNamer, LearnedWords
from samcp.modeling.naming.words import word_table
from samcp.modeling.open_vocabulary import mask_weights
from samcp.vocabulary import Vocabulary

_MIN_AREA = 32 * 32  # in pixels; smaller regions are less than a cell of the feature map
_LARGE_AREA = 96 * 96  # COCO's large objects
_WEIGHT_DECAY = 1e-3
_ITERATIONS = 80


@dataclass(frozen=True)
class ImageRegions:
    """The R annotated regions of an image.

    Attributes:
        dense: (channels, h, w), the namer's features.
        weights: (R, h, w), area of each region in each cell.
        classes: (R,) class of the dataset.
        areas: (R,) in pixels.
        is_thing: (R,) bool.
    """

    dense: Tensor
    weights: Tensor
    classes: Tensor
    areas: Tensor
    is_thing: Tensor


@dataclass(frozen=True)
class Regions:
    """R annotated regions to learn from.

    Attributes:
        features: (R, channels).
        classes: (R,) class of the dataset.
        vocabulary: of the dataset.
    """

    features: Tensor
    classes: Tensor
    vocabulary: Vocabulary


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train on all datasets of --dataset, write --output, and print the accuracy on those of --test."""
    register_files(arguments.register)
    namer = ImageNetNamer(None, min_size=arguments.min_size)
    regions = [read_regions(name, namer, every) for name, every in arguments.dataset]
    learned = train(regions, namer)
    learned.save(arguments.output)
    print(f"wrote {arguments.output}: {int((learned.delta != 0).any(1).sum())} learned words")
    for name in arguments.test:
        print(report(name, ImageNetNamer(LearnedWords.load(arguments.output), min_size=arguments.min_size)))


def read_regions(dataset: str, namer: ImageNetNamer, every: int) -> Regions:
    """Compute the mean features of the annotated regions of every n-th image of a dataset."""
    pooled = [(namer.pool(i.dense, i.weights), i.classes) for i in _read_images(dataset, namer, every)]
    _check_regions(pooled, dataset)
    features, classes = zip(*pooled, strict=True)
    return Regions(torch.cat(features), torch.cat(classes), Vocabulary.of_dataset(dataset))


def _read_images(dataset: str, namer: ImageNetNamer, every: int) -> Iterator[ImageRegions]:
    """Yield the regions of every n-th image of a dataset that has some."""
    num_classes = len(Vocabulary.of_dataset(dataset).names)
    ignore_label = MetadataCatalog.get(dataset).get("ignore_label", 255)
    for record in tqdm(load_dataset(dataset)[::every], desc=dataset, unit="image", mininterval=1):
        image = read_image(Path(record["file_name"]))
        height, width = image.shape[:2]
        truth = read_ground_truth(record, (height, width), num_classes=num_classes, ignore_label=ignore_label)
        kept = ~truth.is_crowd & (truth.masks.areas >= _MIN_AREA)
        masks = truth.masks.select(kept)
        if not len(masks):
            continue
        dense = namer.dense(torch.tensor(image).permute(2, 0, 1).float())[0]
        weights = mask_weights(torch.eye(len(masks), dtype=torch.bool), masks, namer.grid(height, width))
        classes, is_thing = (torch.from_numpy(column[kept]) for column in (truth.classes, truth.is_thing))
        yield ImageRegions(dense, weights, classes, torch.tensor(masks.areas), is_thing)


def _check_regions(images: Sized, dataset: str) -> None:
    if not len(images):
        raise DataError(f"dataset {dataset!r} has no region of {_MIN_AREA} pixels")


def train(regions: list[Regions], namer: ImageNetNamer) -> LearnedWords:
    """Fit the correction of the groups that name a class of the regions, by logistic regression with weight decay.

    Regions of frequent classes have a smaller weight: the reciprocal root of their number.
    """
    groups = torch.cat([_groups(r.vocabulary)[r.classes] for r in regions])
    features = torch.cat([r.features for r in regions])[groups >= 0]
    groups = groups[groups >= 0]
    counts = torch.bincount(groups, minlength=len(word_table().names))
    weights = counts[groups].float().rsqrt()
    seen = (counts > 0).float()

    mean, std = features.mean(0), features.std(0) + 1e-3
    unit = (features - mean) / (std * features.shape[1] ** 0.5)
    with torch.no_grad():
        base = namer.group_logits(features, namer.log_rows(features))
    delta = nn.Parameter(torch.zeros(len(counts), features.shape[1]))
    bias, log_scale = nn.Parameter(torch.zeros(len(counts))), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.LBFGS([delta, bias, log_scale], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = log_scale.exp() * base + (unit @ delta.T + bias) * seen
        error = (F.cross_entropy(logits, groups, reduction="none") * weights).sum() / weights.sum()
        total = error + _WEIGHT_DECAY * (delta.square().sum() + 10 * bias.square().sum()) / seen.sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        rows = delta * seen[:, None] / (std * features.shape[1] ** 0.5)
        return LearnedWords(rows, bias * seen - rows @ mean, log_scale.exp())


def _groups(vocabulary: Vocabulary) -> Tensor:
    """Return the group of the first known word of each class that has one, -1 for a class without."""
    found = [[word_table().find(word) for word in words] for words in vocabulary.words]
    groups = [[word.group for word in words if word is not None and word.group >= 0] for words in found]
    return torch.tensor([known[0] if known else -1 for known in groups])


def report(dataset: str, namer: ImageNetNamer) -> str:
    """Return the accuracy of naming regions, given their true masks, among the things or all classes of a dataset."""
    vocabulary = Vocabulary.of_dataset(dataset)
    images = list(_read_images(dataset, namer, 1))
    _check_regions(images, dataset)
    classes, areas, is_thing = (
        torch.cat([getattr(i, name) for i in images]) for name in ("classes", "areas", "is_thing")
    )
    things = torch.tensor(vocabulary.is_thing).nonzero()[:, 0]
    lines = []
    for name, kept, asked in (
        ("large things", is_thing & (areas >= _LARGE_AREA), things),
        ("regions", torch.ones_like(is_thing), classes.unique()),
    ):
        if kept.any():
            namer.set_words([vocabulary.words[c] for c in asked.tolist()])
            best = torch.cat([asked[namer.probabilities(i.dense, i.weights).argmax(1)] for i in images])
            right = 100 * (best == classes)[kept].float().mean()
            lines.append(
                f"{dataset}, {name}: {int(kept.sum())}, named rightly among {len(asked)} classes: {right:.1f} %"
            )
    return "\n".join(lines)
