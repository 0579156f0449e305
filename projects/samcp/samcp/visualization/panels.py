"""Pictures of one image: itself, its patches, what a model made of them, and the ground truth."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from skimage.color import hsv2rgb
from skimage.segmentation import find_boundaries
from skimage.transform import resize

from proposal_cache import Patches
from samcp.data.image_io import read_image

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

_LEAST_SIDE = 320  # pixels: smaller images are enlarged, so that names written into them can be read
_MOST_SIDE = 4096  # pixels: but not beyond this
_PATCH_OPACITY = 0.6
_SMALL = 0.15  # of the image's short side: an instance that its name would hide
_CHARACTER_EMS, _LINE_EMS = 0.6, 1.3  # what a character, and a line, of a name takes


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
    image = read_image(record["file_name"], "RGB")
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


class _Canvas(Visualizer):
    """Detectron2's, but instances keep their holes and have bright colours of their own, and names can be read.

    Detectron2 fills the outer outline of an instance: what lies within a ring would seem to be part of it.
    """

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Any = None,
        alpha: float = 0.5,
    ) -> VisImage:
        if masks is None or len(masks) == 0:
            return super().overlay_instances(
                boxes=boxes, labels=labels, keypoints=keypoints, assigned_colors=assigned_colors, alpha=alpha
            )
        shapes = self._convert_masks(masks)
        colors = _distinct_colors(len(shapes))
        for i in np.argsort([-int(shape.area()) for shape in shapes], kind="stable"):
            self.draw_binary_mask(shapes[i].mask, color=colors[i], alpha=alpha, area_threshold=0)
            for outline in shapes[i].polygons if shapes[i].has_holes else ():
                self.draw_polygon(outline.reshape(-1, 2), color=colors[i], alpha=0)
        for shape, label, color in zip(shapes, labels or (), colors, strict=False):
            if len(shape.polygons):
                self.draw_text(label, self._place_of_name(shape), color=color)
        return self.output

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        font_size = font_size or self._default_font_size
        em = font_size * self.output.dpi / 72
        width = _CHARACTER_EMS * em * len(text)
        left = position[0] - width / 2 if horizontal_alignment == "center" else position[0]
        inside = (
            max(0, min(left, self.output.width - width)),
            max(0, min(position[1], self.output.height - _LINE_EMS * em)),
        )
        bright = tuple(0.5 + 0.5 * np.array(to_rgb(color)))  # on black
        return super().draw_text(
            text, inside, font_size=font_size, color=bright, horizontal_alignment="left", rotation=rotation
        )

    def _place_of_name(self, shape: GenericMask) -> tuple[float, float]:
        """In the middle of an instance, or below a small one, which it would hide."""
        x0, y0, x1, y1 = shape.bbox()
        small = min(x1 - x0, y1 - y0) < _SMALL * min(self.output.height, self.output.width)
        y, x = np.median(shape.mask.nonzero(), axis=1)
        return ((x0 + x1) / 2, y1) if small else (x, y)


def _canvas(image: Picture, metadata: Metadata) -> _Canvas:
    """A class of stuff has one colour in all images, as far as the metadata let it."""
    if "stuff_colors" not in metadata.as_dict():
        colors = (_distinct_colors(len(metadata.get("stuff_classes", []))) * 255).astype(int)
        metadata = Metadata(**metadata.as_dict(), stuff_colors=colors.tolist())
    return _Canvas(image, metadata, scale=_scale(image), instance_mode=ColorMode.SEGMENTATION)


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
