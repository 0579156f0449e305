"""t-SNE of patch features by class and by instance, with silhouette scores (Fig. 3, 4 and 13)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes
from matplotlib.axes import Axes
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from proposal_cache import Patches
from samcp.regions import Regions
from samcp.scene import Scene
from samcp.visualization.palette import Colors, class_colors, region_colors

STAGES = ("backbone", "patch encoder")

_BELONGS = 0.8  # tau of METHOD 6: least share of a patch inside the region that it gets the label of
_PERPLEXITY = 30
_MIN_POINTS = 4  # of a t-SNE


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Features and labels of K patches that belong to a region of the ground truth.

    Attributes:
        features: stage of STAGES -> (K, channels).
        classes: (K,) class ids.
        instances: (K,) number of the thing instance, -1 for stuff.
        instance_colors: (K, 3) colours of the regions.
    """

    features: Mapping[str, np.ndarray]
    classes: np.ndarray
    instances: np.ndarray
    instance_colors: Colors

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def concatenate(cls, parts: Sequence["PatchFeatures"]) -> "PatchFeatures":
        """Concatenate the patches of several images, whose instances get new numbers and colours."""
        instances, first = [], 0
        for part in parts:
            instances.append(np.where(part.instances >= 0, part.instances + first, -1))
            first += int(part.instances.max(initial=-1)) + 1
        numbers = np.concatenate(instances)
        return cls(
            {stage: np.concatenate([part.features[stage] for part in parts]) for stage in STAGES},
            np.concatenate([part.classes for part in parts]),
            numbers,
            class_colors(first)[numbers] if first else np.zeros((len(numbers), 3)),
        )

    def by_class(self, stage: str) -> tuple[np.ndarray, np.ndarray, Colors]:
        """Return the features (K, channels) of a stage, the classes (K,), and their colours (K, 3)."""
        colors = class_colors(int(self.classes.max(initial=0)) + 1)
        return self.features[stage], self.classes, colors[self.classes]

    def by_instance(self, stage: str) -> tuple[np.ndarray, np.ndarray, Colors]:
        """Return the same of the patches of things, with the numbers of their instances."""
        things = self.instances >= 0
        return self.features[stage][things], self.instances[things], self.instance_colors[things]


@torch.no_grad()
def patch_features(scene: Scene, truth: Regions) -> PatchFeatures:
    """Return the features of the patches of one image before and after the patch encoder.

    The feature of the backbone is the mean of the feature map over the patch, as RoIAlign samples it. A patch gets the
    label of the region that it is inside of by at least 80 %; other patches, and those of crowds, are skipped.
    """
    owner = _owners(scene.patches, truth)
    kept = np.flatnonzero(owner >= 0)
    owner = owner[kept]
    features = dict(zip(STAGES, (_pooled(scene), scene.encoded.content[0]), strict=True))
    return PatchFeatures(
        {stage: values[torch.from_numpy(kept)].float().cpu().numpy() for stage, values in features.items()},
        truth.classes[owner],
        np.where(truth.is_thing[owner], owner, -1),
        region_colors(truth)[owner],
    )


def silhouette(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette of labels (K,) in the features (K, channels), by the cosine distance.

    It is 1 if all labels form separate clusters, about 0 if they are mixed, and NaN if there are no two labels, or no
    two patches of one label.
    """
    if not 1 < len(np.unique(labels)) < len(labels):
        return float("nan")
    return float(silhouette_score(features, labels, metric="cosine"))


def draw_tsne(axes: Axes, title: str, points: tuple[np.ndarray, np.ndarray, Colors]) -> None:
    """Draw features of :meth:`PatchFeatures.by_class` in two dimensions, with their silhouette in the title."""
    features, labels, colors = points
    axes.set_title(f"{title}\nsilhouette {silhouette(features, labels):.2f}", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    if len(features) < _MIN_POINTS:
        axes.text(0.5, 0.5, f"{len(features)} patches", ha="center", va="center", transform=axes.transAxes)
        return
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    places = tsne.fit_transform(features)
    axes.scatter(places[:, 0], places[:, 1], c=colors, s=14, edgecolors="black", linewidths=0.3)


def _owners(patches: Patches, truth: Regions) -> np.ndarray:
    """Return the region that each patch is inside of, (N,), or -1."""
    if not len(truth):
        return np.full(len(patches), -1)
    inside = patches.iop(truth.masks)
    owner = inside.argmax(axis=1)
    return np.where((inside.max(axis=1) >= _BELONGS) & ~truth.is_crowd[owner], owner, -1)


def _pooled(scene: Scene) -> torch.Tensor:
    """Return the mean of the feature maps over each patch, (N, channels); see :func:`patch_features`."""
    model, batch = scene.predictor.model, scene.encoded.patches
    levels = [scene.encoded.features[name] for name in model.in_features]
    pooled = model.patch_encoder.roi_embedding.pooler(levels, [Boxes(batch.boxes[0])])
    masks = batch.roi_masks[0].unsqueeze(1)
    # Of a patch thinner than a sample, the whole box.
    masks = torch.where(masks.sum((2, 3), keepdim=True) > 0, masks, torch.ones_like(masks))
    return (pooled * masks).sum((2, 3)) / masks.sum((2, 3))
