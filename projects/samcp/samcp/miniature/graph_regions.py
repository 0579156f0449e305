"""Second generator of patches of the miniature, not learned, so that its tables can exchange and add patches."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.restoration import denoise_tv_chambolle
from skimage.segmentation import felzenszwalb

from proposal_cache import Patches

_STEPS = 60  # of the smoothing
_DUPLICATE_IOU = 0.9  # with a region of a smaller scale


@dataclass(frozen=True)
class GraphRegions:
    """Regions by similarity of colours (Felzenszwalb and Huttenlocher 2004) in a smoothed image, at several scales.

    Attributes:
        scales: larger ones give larger regions.
        smoothing: weight of the total variation, which flattens texture and noise and keeps borders.
        min_size: pixels of the smallest region.
    """

    scales: tuple[float, ...] = (100.0, 400.0, 1600.0)
    smoothing: float = 0.2
    min_size: int = 30

    def describe(self) -> dict[str, Any]:
        return {"name": "graph_regions", **asdict(self), "scales": list(self.scales)}

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        smooth = denoise_tv_chambolle(image / np.float32(255), self.smoothing, max_num_iter=_STEPS, channel_axis=-1)
        levels = (felzenszwalb(smooth, scale, sigma=0, min_size=self.min_size) for scale in self.scales)
        regions = Patches.concatenate([_to_patches(labels) for labels in levels])
        smaller = np.tril(regions.iou(regions), -1)
        return regions.select(np.flatnonzero(smaller.max(axis=1) <= _DUPLICATE_IOU))


def _to_patches(labels: NDArray[np.integer]) -> Patches:
    return Patches.from_masks(labels == np.arange(labels.max() + 1)[:, None, None])
