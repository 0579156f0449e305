"""Label maps of drawn scenes, which train the small SAM on them."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from skimage.measure import label as connected_components

from samcp.contours.dataset import LabelMap
from samcp.miniature.scenes import STYLES, DrawnScene, draw_scene

# Share of the styles among the training images. SAM has seen all of them, as it has seen anything in photographs.
_SHARES = {"open_val": 0.6, "shifted_val": 0.1, "camouflage_val": 0.1, "tiny_val": 0.2}


@dataclass(frozen=True)
class DrawScenes:
    """Draws of scenes of all styles and classes; see `samcp.small_sam.data.Draw`."""

    def __call__(self, random: Generator) -> tuple[NDArray[np.uint8], list[LabelMap]]:
        style = random.choice(list(_SHARES), p=list(_SHARES.values()))
        scene = draw_scene(random, STYLES[str(style)])
        return scene.image, label_maps(scene, random)


def label_maps(scene: DrawnScene, random: Generator) -> list[LabelMap]:
    """Return the connected regions (H, W), from 1, of three annotators.

    The first outlines whole objects, the second parts of things, and the third parts of which two per thing are joined.
    """
    maps = np.zeros((3, *scene.image.shape[:2]), np.int32)
    number = 0
    for drawn in scene.objects:
        masks = list(drawn.parts.values()) or [drawn.mask]
        joined = random.permutation(len(masks))[:2]
        maps[0][drawn.mask] = number
        for index, mask in enumerate(masks):
            maps[1][mask] = number + index
            maps[2][mask] = number + (joined.min() if index in joined else index)
        number += len(masks)
    return [connected_components(regions, background=-1, connectivity=1).astype(np.int32) for regions in maps]
