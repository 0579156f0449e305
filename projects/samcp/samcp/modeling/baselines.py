"""Baselines that classify each patch alone, without Prompt II, for a comparison with the affinity decoder."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from proposal_cache import Patches
from samcp.modeling.inference import Inference, Predictions

BASELINES = ("patches", "components")

# Patches of one object may have a gap of some pixels along their common edge.
_MAX_DISTANCE = 3  # pixels between touching patches, horizontally or vertically


class BaselineInference(Inference):
    """Inference that replaces Prompt II by a rule. Each patch gets its best class by Prompt I.

    The patches of a stuff class are one segment. The segmentation of the entities is that of :class:`Inference`.

    Args:
        baseline: rule for thing patches: "patches", each is an instance; or "components", the connected components of
            patches with the same label are instances.
        options: of :class:`Inference`.
    """

    def __init__(self, *, baseline: str, **options: Any) -> None:
        super().__init__(**options)
        self.baseline = baseline

    def __call__(self, predictions: Predictions, patches: Patches) -> dict[str, object]:
        predictions = Predictions(*(value.cpu() for value in vars(predictions).values()))
        best, labels = self.patch_class_scores(predictions).max(-1)
        labels = torch.where(best > 0, labels, -1)
        groups = self._instances(labels, patches)
        is_stuff = ~torch.isin(torch.arange(self.num_classes), self.thing_classes)
        stuff = is_stuff.nonzero().squeeze(1)
        same_class = labels == stuff[:, None]
        classes = torch.where(groups, labels, -1).amax(-1) if len(groups) else labels[:0]
        entities = Predictions(
            semantic_classes=stuff,
            semantic_scores=_max_score(same_class, best),
            semantic_affinity=same_class.float(),
            instance_scores=F.one_hot(classes, self.num_classes) * _max_score(groups, best)[:, None],
            instance_affinity=groups.float(),
        )
        return super().__call__(entities, patches)

    def _instances(self, labels: Tensor, patches: Patches) -> Tensor:
        """Return the patches of each instance, (M, N) bool, from labels (N,)."""
        things = torch.isin(labels, self.thing_classes)
        if self.baseline == "patches" or not things.any():
            return torch.eye(len(labels), dtype=torch.bool)[things]
        same = (labels == labels[:, None]) & things & things[:, None]
        number, component = connected_components(sparse.csr_matrix(same.numpy() & touching(patches)), directed=False)
        groups = torch.from_numpy(component) == torch.arange(number)[:, None]
        return groups[(groups & things).any(-1)]


def touching(patches: Patches) -> np.ndarray:
    """Return the pairs of patches that overlap or are at most 3 pixels apart, (N, N) bool."""
    partition = patches.partition()
    count = len(partition.membership)
    regions = partition.paint(np.arange(count))
    pairs = {(region, region) for region in range(count)}
    for distance in range(1, _MAX_DISTANCE + 1):
        for one, other in ((regions[distance:], regions[:-distance]), (regions[:, distance:], regions[:, :-distance])):
            pairs.update(map(tuple, np.unique(np.stack([one.ravel(), other.ravel()], 1), axis=0).tolist()))
    rows, columns = np.array(sorted(pairs)).T
    near = sparse.csr_matrix((np.ones(len(rows), np.int64), (rows, columns)), (count, count))
    members = sparse.csr_matrix(partition.membership.astype(np.int64))
    found = (members.T @ near @ members).toarray() > 0
    return found | found.T


def _max_score(groups: Tensor, scores: Tensor) -> Tensor:
    """Return the highest score of each group's patches, (M,), 0 for an empty group."""
    return F.pad(groups * scores, (0, 1)).amax(-1)
