"""Training of the cost of merges: are two neighbouring regions parts of one object?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from proposal_cache.generators.contours.graph import FloatArray, IntArray, RegionGraph
from proposal_cache.generators.contours.hierarchy import Perceptron, pair_features
from samcp.contours.dataset import UNKNOWN, LabelMap

_HIDDEN = 16
_STEPS, _BATCH, _LR = 3000, 2048, 3e-3
_NEIGHBOURS = 2  # random neighbours of each merged region that become pairs


@dataclass(frozen=True)
class PairSamples:
    """M pairs of neighbouring regions.

    Attributes:
        features: (M, F) see `pair_features`.
        different: (M,) probability that a pixel of one and one of the other are in different regions of an annotator.
        weights: (M,) of the pairs; 0 where no region is known.
    """

    features: FloatArray
    different: FloatArray
    weights: FloatArray

    @classmethod
    def concatenate(cls, parts: Sequence["PairSamples"]) -> "PairSamples":
        """Concatenate samples."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def sample_pairs(
    graph: RegionGraph,
    children: IntArray,
    leaves: IntArray,
    segmentations: Iterable[LabelMap],
    random: np.random.Generator,
) -> PairSamples:
    """Return the pairs of regions that are merged in a hierarchy, and random other neighbours of merged regions.

    Args:
        graph: of the leaves.
        children: (T, 2) merges.
        leaves: (H, W) leaf of each pixel.
        segmentations: regions (H, W) per annotator.
        random: generator of random numbers.
    """
    count = len(graph.regions)
    neighbours: list[dict[int, FloatArray]] = [{} for _ in range(count)]
    for border, a, b in zip(graph.borders, graph.first.tolist(), graph.second.tolist(), strict=True):
        neighbours[a][b] = neighbours[b][a] = border
    pairs: list[tuple[int, int, FloatArray]] = []
    for new, (a, b) in enumerate(children.tolist(), count):
        pairs.append((a, b, neighbours[a][b]))
        around = {
            name: neighbours[a].get(name, 0) + neighbours[b].get(name, 0)
            for name in {*neighbours[a], *neighbours[b]} - {a, b}
        }
        for name, border in around.items():
            neighbours[name].pop(a, None)
            neighbours[name].pop(b, None)
            neighbours[name][new] = border
        neighbours.append(around)
        drawn = random.permutation(sorted(around))[:_NEIGHBOURS]
        pairs += [(int(name), new, around[name]) for name in drawn]
    one, other = np.array([(a, b) for a, b, _ in pairs], np.int64).reshape(-1, 2).T
    regions = _with_merges(graph.regions, children)
    features = pair_features(
        regions[one], regions[other], np.array([border for *_, border in pairs]).reshape(-1, 3), leaves.size
    )
    different, known = [], []
    for segmentation in segmentations:
        shares = _with_merges(_overlaps(leaves, segmentation, count), children)
        shares = shares / shares.sum(1, keepdims=True)
        product = shares[one] * shares[other]
        different.append(1 - product.sum(1) + product[:, UNKNOWN])
        known.append(1 - product[:, UNKNOWN])
    return PairSamples(features, np.mean(different, axis=0), np.min(known, axis=0))


def fit_cost(samples: PairSamples, *, seed: int = 0) -> Perceptron:
    """Fit a perceptron to predict `different`, by weighted cross-entropy."""
    torch.manual_seed(seed)
    mean, deviation = samples.features.mean(0), samples.features.std(0) + 1e-6
    features = torch.from_numpy(((samples.features - mean) / deviation).astype(np.float32))
    different, weights = (torch.from_numpy(a.astype(np.float32)) for a in (samples.different, samples.weights))
    hidden, output = nn.Linear(features.shape[1], _HIDDEN), nn.Linear(_HIDDEN, 1)
    model = nn.Sequential(hidden, nn.ReLU(), output)
    optimizer = torch.optim.Adam(model.parameters(), _LR)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        drawn = torch.randint(len(features), (_BATCH,))
        logits = model(features[drawn])[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, different[drawn], weight=weights[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    weight, bias, out, out_bias = (p.detach().double().numpy() for p in model.parameters())
    weight = weight / deviation
    return Perceptron(weight.T, bias - weight @ mean, out[0], float(out_bias[0]))


def _overlaps(leaves: IntArray, segmentation: LabelMap, count: int) -> NDArray[np.float64]:
    """Return the pixels that each leaf has in each region of a segmentation, (count, regions)."""
    regions = int(segmentation.max()) + 1
    codes = leaves.ravel() * regions + segmentation.ravel()
    return np.bincount(codes, minlength=count * regions).reshape(count, regions).astype(np.float64)


def _with_merges(rows: FloatArray, children: IntArray) -> FloatArray:
    """Append one row per merge, the sum of those of its two regions."""
    result = np.concatenate([rows, np.zeros((len(children), rows.shape[1]))])
    for new, (a, b) in enumerate(children.tolist(), len(rows)):
        result[new] = result[a] + result[b]
    return result
