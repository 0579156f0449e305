"""Drawing of predictions and ground truth."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import Metadata
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt, maximum_filter
from skimage.segmentation import find_boundaries

from samcp.regions import Regions, class_names, predicted_regions, true_regions
from samcp.visualization.labels import Label, LegendEntry, draw_labels, draw_legend
from samcp.visualization.palette import Colors, region_colors
from samcp.vocabulary import Vocabulary

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

UNLABELLED = "unlabelled"

_MIN_SIDE = 320  # pixels; smaller images are enlarged to it, so that labels are legible
_MAX_SIDE = 4096  # pixels; no image is enlarged beyond it
_OPACITY = 0.55  # of a region
_HATCH = (9, 2)  # pixels of a 320 pixel picture: period and width of the lines over unlabelled pixels
_HATCH_COLORS = (255, 0)  # of adjacent lines; one of them is visible on any image
_HATCH_OPACITY = 0.45
_GREY = 128  # of unlabelled pixels in the legend
_FONT_SHARE = 0.034  # size of the font relative to the shorter side
_MIN_FONT = 11  # pixels
_OUTLINE_SHARE = 400  # shorter side of the picture, in units of the width of an outline
_MAX_DISTANCES = 500  # pixels per side, to find the middle of a region of a large picture
_SMALL = 5  # height, in units of the font, below which a region's label is drawn above it
_MIN_LABELLED = 0.0012  # least share of the picture of a region with a label; the legend counts all of them


def draw_prediction(image: Picture, prediction: Mapping[str, Any], metadata: Metadata) -> Picture:
    """Draw a model's output over the image: its panoptic segmentation, else semantic segmentation, else instances.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: outputs of :meth:`samcp.SAMCP.forward` for the image.
        metadata: of the dataset, for names of the classes.

    Returns:
        The picture, enlarged if it is small, above a legend.

    Raises:
        ValueError: the prediction has none of the three.
    """
    regions = predicted_regions(prediction)
    return draw_regions(image, regions, region_colors(regions), metadata)


def draw_ground_truth(image: Picture, record: Mapping[str, Any], metadata: Metadata) -> Picture:
    """Draw the annotations of a Detectron2 record over the image, above a legend."""
    regions = true_regions(record, image.shape[:2], metadata)
    return draw_regions(image, regions, region_colors(regions), metadata)


def draw_comparison(image: Picture, predicted: Regions, truth: Regions, metadata: Metadata) -> tuple[Picture, Picture]:
    """Draw a prediction and a ground truth with the same colour for the same class and for matched instances."""
    return (
        draw_regions(image, predicted, region_colors(predicted, truth), metadata),
        draw_regions(image, truth, region_colors(truth), metadata),
    )


def draw_regions(image: Picture, regions: Regions, colors: Colors, metadata: Metadata) -> Picture:
    """Draw regions over an image: colours, outlines, labels, and below it a legend that counts the instances.

    Pixels without a label are hatched and in the legend, if the regions are of the whole image.

    Args:
        image: (H, W, 3) uint8 RGB.
        regions: R regions.
        colors: (R, 3).
        metadata: of the dataset, for names of the classes.
    """
    canvas = enlarge(image).astype(np.float32)
    shape = canvas.shape[:2]
    owner = _owners(regions, shape)
    covered = owner >= 0
    canvas[covered] *= 1 - _OPACITY
    canvas[covered] += (_OPACITY * 255 * colors.astype(np.float32))[owner[covered]]
    if regions.whole:
        canvas = _hatched(canvas, ~covered)
    outline = round(min(shape) / _OUTLINE_SHARE)
    canvas[maximum_filter(find_boundaries(owner, mode="inner"), max(1, outline))] = 255
    names = class_names(metadata)
    font_size = max(int(_FONT_SHARE * min(shape)), _MIN_FONT)
    labels = []
    for i in np.argsort(-regions.masks.areas, kind="stable").tolist():
        visible = owner == i
        if visible.mean() > _MIN_LABELLED:
            labels.append(Label(_label(regions, i, names), _anchor(visible, font_size), colors[i]))
    picture = draw_labels(canvas.round().astype(np.uint8), labels, font_size)
    entries = _legend(regions, colors, names, 1 - covered.mean())
    return np.concatenate([picture, draw_legend(entries, shape[1], font_size)])


def vocabulary_metadata(vocabulary: Vocabulary) -> Metadata:
    """Return the names of a user's classes as the metadata of a dataset."""
    names = list(vocabulary.names)
    return Metadata(name="vocabulary", thing_classes=names, stuff_classes=names, ignore_label=255)


def enlarge(image: Picture, smooth: bool = True) -> Picture:
    """Resize a picture to the size of its panel, by bicubic interpolation if ``smooth``, else by nearest neighbour."""
    scale = max(1.0, min(_MIN_SIDE / min(image.shape[:2]), _MAX_SIDE / max(image.shape[:2])))
    return _resize(image, (int(image.shape[0] * scale), int(image.shape[1] * scale)), smooth)


def _resize(picture: NDArray[Any], shape: Sequence[int], smooth: bool) -> NDArray[Any]:
    """Resize a picture (h, w, 3) or a mask (h, w) to (height, width)."""
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((shape[1], shape[0]), method))


def _owners(regions: Regions, shape: Sequence[int]) -> NDArray[np.int32]:
    """Return the region of each pixel, (H, W), or -1; small regions are in front of large ones."""
    owner = np.full(shape, -1, np.int32)
    for i in np.argsort(-regions.masks.areas, kind="stable").tolist():
        owner[_resize(regions.masks.decode([i])[0], shape, smooth=False)] = i
    return owner


def _hatched(canvas: NDArray[np.float32], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a picture (H, W, 3) with diagonal lines on the pixels of `where` (H, W)."""
    scale = max(1.0, min(canvas.shape[:2]) / _MIN_SIDE)
    period, width = (round(scale * pixels) for pixels in _HATCH)
    diagonal = np.add.outer(np.arange(where.shape[0]), np.arange(where.shape[1])) % period
    hatched = canvas.copy()
    for number, color in enumerate(_HATCH_COLORS):
        lines = where & (diagonal // width == number)
        hatched[lines] = (1 - _HATCH_OPACITY) * canvas[lines] + _HATCH_OPACITY * color
    return hatched


def _anchor(mask: NDArray[np.bool_], font_size: int) -> tuple[float, float]:
    """Return x and y of a label: the pixel farthest from the outline, or above a region that it would cover."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    if rows[-1] - top < _SMALL * font_size:
        return float((left + columns[-1]) / 2), float(top - font_size)
    step = max(1, max(mask.shape) // _MAX_DISTANCES)
    inside = np.pad(mask[top : rows[-1] + 1 : step, left : columns[-1] + 1 : step], 1)
    y, x = np.unravel_index(distance_transform_edt(inside).argmax(), inside.shape)
    return float(left + step * (x - 1)), float(top + step * (y - 1))


def _label(regions: Regions, index: int, names: list[str]) -> str:
    name = names[regions.classes[index]]
    if regions.is_crowd[index]:
        return f"{name} (crowd)"
    if regions.scores is None or not regions.is_thing[index]:
        return name
    return f"{name} {regions.scores[index]:.0%}"


def _legend(regions: Regions, colors: Colors, names: list[str], unlabelled: float) -> list[LegendEntry]:
    """Return one entry per class, with the number of its instances, and one for unlabelled pixels."""
    counts = Counter(regions.classes[regions.instances].tolist())
    entries = []
    for c in np.unique(regions.classes).tolist():
        members = np.flatnonzero(regions.classes == c)
        samples = np.unique((255 * colors[members]).round().astype(np.uint8), axis=0)
        name = f"{counts[c]} × {names[c]}" if counts[c] else names[c]
        entries.append(LegendEntry(samples[None], name))
    if regions.whole and unlabelled > 0:
        grey = np.full((24, 34, 3), _GREY, np.float32)
        sample = _hatched(grey, np.ones(grey.shape[:2], bool)).astype(np.uint8)
        share = f"{unlabelled:.0%}" if unlabelled >= 0.01 else "< 1%"
        entries.append(LegendEntry(sample, f"{UNLABELLED} {share}"))
    return entries
