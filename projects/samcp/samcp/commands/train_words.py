"""Training of the learned words of samcp.modeling.naming on annotated regions."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
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
class Regions:
    """Annotated regions with their features.

    Attributes:
        features: (R, channels).
        classes: (R,) class of the dataset.
        areas: (R,) in pixels.
        is_thing: (R,) bool.
        vocabulary: of the dataset.
    """

    features: Tensor
    classes: Tensor
    areas: Tensor
    is_thing: Tensor
    vocabulary: Vocabulary


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train on all datasets of --dataset, write --output, and print the accuracy on --test."""
    register_files(arguments.register)
    namer = ImageNetNamer(None, min_size=arguments.min_size)
    regions = [read_regions(name, namer, every) for name, every in arguments.dataset]
    learned = train(regions, namer)
    learned.save(arguments.output)
    print(f"wrote {arguments.output}: {int((learned.delta != 0).any(1).sum())} learned words")
    if arguments.test:
        named = ImageNetNamer(LearnedWords.load(arguments.output), min_size=arguments.min_size)
        print(report(read_regions(arguments.test, named, 1), named))


def read_regions(dataset: str, namer: ImageNetNamer, every: int) -> Regions:
    """Compute the features of the ground truth of every n-th image of a dataset."""
    vocabulary = Vocabulary.of_dataset(dataset)
    features, classes, areas, things = [], [], [], []
    for record in tqdm(load_dataset(dataset)[::every], desc=dataset, unit="image", mininterval=1):
        image = read_image(Path(record["file_name"]))
        height, width = image.shape[:2]
        truth = read_ground_truth(
            record, (height, width), num_classes=len(vocabulary.names), ignore_label=record.get("ignore_label", 255)
        )
        kept = ~truth.is_crowd & (truth.masks.areas >= _MIN_AREA)
        masks = truth.masks.select(kept)
        if not len(masks):
            continue
        dense = namer.dense(torch.tensor(image).permute(2, 0, 1).float())[0]
        weights = mask_weights(torch.eye(len(masks), dtype=torch.bool), masks, namer.grid(height, width))
        features.append(namer.pool(dense, weights))
        classes.append(torch.from_numpy(truth.classes[kept]))
        areas.append(torch.tensor(masks.areas))
        things.append(torch.from_numpy(truth.is_thing[kept]))
    if not features:
        raise DataError(f"dataset {dataset!r} has no region of {_MIN_AREA} pixels")
    return Regions(torch.cat(features), torch.cat(classes), torch.cat(areas), torch.cat(things), vocabulary)


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


def report(regions: Regions, namer: ImageNetNamer) -> str:
    """Return the accuracy of naming regions, given their true masks, among the things or all classes of the dataset."""
    lines = []
    for name, kept in (("large things", regions.is_thing & (regions.areas >= _LARGE_AREA)), ("regions", None)):
        which = torch.ones_like(regions.is_thing) if kept is None else kept
        asked = regions.classes.unique() if kept is None else torch.tensor(regions.vocabulary.is_thing).nonzero()[:, 0]
        namer.set_words([regions.vocabulary.words[c] for c in asked.tolist()])
        best = asked[namer.classify(regions.features[which]).argmax(1)]
        right = (best == regions.classes[which]).float().mean()
        lines.append(f"{name}: {int(which.sum())}, named rightly among {len(asked)} classes: {100 * right:.1f} %")
    return "\n".join(lines)
