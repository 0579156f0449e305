"""Drawing of predictions and ground truth."""

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
from skimage.transform import resize

from samcp.vocabulary import Vocabulary

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

_MIN_SIDE = 320  # pixels; smaller images are enlarged to it, so that labels are legible
_MAX_SIDE = 4096  # pixels; no image is enlarged beyond it
_SMALL = 0.15  # share of the image's short side below which a label is drawn under its instance, not on it
_CHARACTER_EMS, _LINE_EMS = 0.6, 1.3  # width of a character and height of a line of a label


def draw_prediction(image: Picture, prediction: Mapping[str, Any], metadata: Metadata) -> Picture:
    """Draw a model's output over the image: its panoptic segmentation, else semantic segmentation, else instances.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: outputs of :meth:`samcp.SAMCP.forward` for the image.
        metadata: of the dataset, for names and colours of the classes.

    Returns:
        The picture, enlarged if it is small.

    Raises:
        ValueError: the prediction has none of the three.
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
                f"the prediction has {sorted(prediction)}; it needs one of panoptic_seg, sem_seg and instances"
            )
    return canvas.get_output().get_image()


def draw_ground_truth(image: Picture, record: Mapping[str, Any], metadata: Metadata) -> Picture:
    """Draw the annotations of a Detectron2 record over the image."""
    canvas = _canvas(image, metadata)
    with _repeatable_colors():
        return canvas.draw_dataset_dict(dict(record)).get_image()


def vocabulary_metadata(vocabulary: Vocabulary) -> Metadata:
    """Return the names of a user's classes as the metadata of a dataset."""
    names = list(vocabulary.names)
    return Metadata(name="vocabulary", thing_classes=names, stuff_classes=names, ignore_label=255)


def enlarge(image: Picture, smooth: bool = True) -> Picture:
    """Resize a picture to the size of its panel, by bicubic interpolation if ``smooth``, else by nearest neighbour."""
    scale = _scale(image)
    shape = (int(image.shape[0] * scale), int(image.shape[1] * scale))
    if shape == image.shape[:2]:
        return image
    return (resize(image / 255, shape, order=3 if smooth else 0) * 255).astype(np.uint8)


class _Canvas(Visualizer):
    """Detectron2's Visualizer with three changes: holes of instances, colours of instances, and legible labels.

    Detectron2 fills the outer outline of an instance, so that the hole of a ring would look like a part of it.
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
                self.draw_text(label, self._label_position(shape), color=color)
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
        bright = tuple(0.5 + 0.5 * np.array(to_rgb(color)))  # the label's background is black
        return super().draw_text(
            text, inside, font_size=font_size, color=bright, horizontal_alignment="left", rotation=rotation
        )

    def _label_position(self, shape: GenericMask) -> tuple[float, float]:
        """Return (x, y) of a label: the middle of the instance, or below a small instance, which it would cover."""
        x0, y0, x1, y1 = shape.bbox()
        small = min(x1 - x0, y1 - y0) < _SMALL * min(self.output.height, self.output.width)
        y, x = np.median(shape.mask.nonzero(), axis=1)
        return ((x0 + x1) / 2, y1) if small else (x, y)


def _canvas(image: Picture, metadata: Metadata) -> _Canvas:
    """Return a canvas on which a stuff class has the same colour in all images."""
    if "stuff_colors" not in metadata.as_dict():
        colors = (_distinct_colors(len(metadata.get("stuff_classes", []))) * 255).astype(int)
        metadata = Metadata(**metadata.as_dict(), stuff_colors=colors.tolist())
    return _Canvas(image, metadata, scale=_scale(image), instance_mode=ColorMode.SEGMENTATION)


def _scale(image: Picture) -> float:
    return max(1.0, min(_MIN_SIDE / min(image.shape[:2]), _MAX_SIDE / max(image.shape[:2])))


def _drawable(sem_seg: torch.Tensor, metadata: Metadata) -> torch.Tensor:
    """Return an (H, W) label map from labels or (C, H, W) scores, with unlabeled pixels as C instead of -1."""
    labels = sem_seg.cpu() if sem_seg.dim() == 2 else sem_seg.cpu().argmax(0)
    return torch.where(labels < 0, len(metadata.stuff_classes), labels)


def _distinct_colors(count: int) -> NDArray[np.float64]:
    """Return (count, 3) colours in [0, 1]; adjacent rows have distant hues."""
    index = np.arange(count)
    hue = index * 0.618034 % 1  # steps of the golden ratio never repeat a hue
    return hsv2rgb(np.stack([hue, 0.55 + 0.15 * (index % 4), 0.95 - 0.12 * (index % 3)], -1)[None])[0]


@contextmanager
def _repeatable_colors() -> Iterator[None]:
    """Make Detectron2's Visualizer deterministic: it jitters colours by numpy's global random state."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
