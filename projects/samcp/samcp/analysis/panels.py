"""Pictures of one image: itself, its patches, what a model made of them, and the ground truth."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer
from numpy.typing import NDArray
from skimage.color import hsv2rgb
from skimage.segmentation import find_boundaries
from skimage.transform import resize

from proposal_cache import Patches

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

_LEAST_SIDE = 320  # pixels: smaller images are enlarged, so that names written into them can be read
_MOST_SIDE = 4096  # pixels: but not beyond this
_PATCH_OPACITY = 0.6


def panel(
    record: Mapping[str, Any], patches: Patches, prediction: Mapping[str, Any] | None, metadata: Metadata
) -> dict[str, Picture]:
    """The pictures of one image of a registered dataset, all of one size.

    Args:
        record: of Detectron2's dataset, with ground truth as panoptic or semantic PNG, or as annotations.
        patches: of this image.
        prediction: the model's output for it, or None where there is none.
        metadata: of the dataset.

    Returns:
        "image", "patches", "result" (if there is a prediction) and "ground truth".
    """
    image = read_image(record["file_name"], format="RGB")
    pictures = {"image": enlarge(image), "patches": enlarge(paint_patches(image, patches), smooth=False)}
    if prediction is not None:
        pictures["result"] = paint_prediction(image, prediction, metadata)
    pictures["ground truth"] = paint_ground_truth(image, record, metadata)
    return pictures


def paint_patches(image: Picture, patches: Patches) -> Picture:
    """Every patch in a colour of its own over the image, small ones on top, outlined.

    Raises:
        ValueError: the patches are of an image of another size.
    """
    if image.shape[:2] != (patches.height, patches.width):
        raise ValueError(f"patches of {patches.height} x {patches.width} do not fit an image of {image.shape[:2]}")
    top = np.zeros(image.shape[:2], np.int64)  # 1 + index of the smallest patch at a pixel; 0: none
    for index in np.argsort(-patches.areas, kind="stable"):
        top[patches.decode([index])[0]] = index + 1
    colors = np.concatenate([np.zeros((1, 3)), _distinct_colors(len(patches))])
    opacity = np.where(top > 0, _PATCH_OPACITY, 0)[..., None]
    painted = image / 255 * (1 - opacity) + colors[top] * opacity
    painted[find_boundaries(top, mode="inner")] = 1
    return (painted * 255).astype(np.uint8)


def paint_prediction(image: Picture, prediction: Mapping[str, Any], metadata: Metadata) -> Picture:
    """A model's output over the image: its panoptic segmentation or, in its absence, its semantic one or instances.

    Raises:
        ValueError: the prediction has none of them.
    """
    canvas = _canvas(image, metadata)
    with _repeatable_colors():
        if "panoptic_seg" in prediction:
            segments, infos = prediction["panoptic_seg"]
            canvas.draw_panoptic_seg(segments.cpu(), [dict(info) for info in infos], area_threshold=0, alpha=0.5)
        elif "sem_seg" in prediction:
            canvas.draw_sem_seg(_drawable(prediction["sem_seg"], metadata), area_threshold=0, alpha=0.5)
        elif "instances" in prediction:
            canvas.draw_instance_predictions(prediction["instances"].to("cpu"))
        else:
            raise ValueError(
                f"nothing to draw in a prediction with {sorted(prediction)}: panoptic_seg, sem_seg, instances"
            )
    return canvas.get_output().get_image()


def paint_ground_truth(image: Picture, record: Mapping[str, Any], metadata: Metadata) -> Picture:
    """What a record of Detectron2's dataset has of annotations, over the image."""
    canvas = _canvas(image, metadata)
    with _repeatable_colors():
        return canvas.draw_dataset_dict(dict(record)).get_image()


def enlarge(image: Picture, smooth: bool = True) -> Picture:
    """The picture at the size that the others of its panel have."""
    scale = _scale(image)
    shape = (int(image.shape[0] * scale), int(image.shape[1] * scale))
    if shape == image.shape[:2]:
        return image
    return (resize(image / 255, shape, order=3 if smooth else 0) * 255).astype(np.uint8)


def _canvas(image: Picture, metadata: Metadata) -> Visualizer:
    """A class of stuff has one colour in all images, as far as the metadata let it."""
    if "stuff_colors" not in metadata.as_dict():
        colors = (_distinct_colors(len(metadata.get("stuff_classes", []))) * 255).astype(int)
        metadata = Metadata(**metadata.as_dict(), stuff_colors=colors.tolist())
    return Visualizer(image, metadata, scale=_scale(image), instance_mode=ColorMode.SEGMENTATION)


def _scale(image: Picture) -> float:
    return max(1.0, min(_LEAST_SIDE / min(image.shape[:2]), _MOST_SIDE / max(image.shape[:2])))


def _drawable(sem_seg: torch.Tensor, metadata: Metadata) -> torch.Tensor:
    """An (H, W) label map, of scores or of labels, in which what has no label is past the last class, not -1."""
    labels = sem_seg.cpu() if sem_seg.dim() == 2 else sem_seg.cpu().argmax(0)
    return torch.where(labels < 0, len(metadata.stuff_classes), labels)


def _distinct_colors(count: int) -> NDArray[np.float64]:
    """(count, 3) in [0, 1]; neighbours in the list are far apart in hue."""
    index = np.arange(count)
    hue = index * 0.618034 % 1  # the golden section never lets hues fall together
    return hsv2rgb(np.stack([hue, 0.55 + 0.15 * (index % 4), 0.95 - 0.12 * (index % 3)], -1)[None])[0]


@contextmanager
def _repeatable_colors() -> Iterator[None]:
    """Let Detectron2's Visualizer, which varies colours by numpy's global generator, paint the same input the same."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
