"""Encoded image, which is queried by words, patches and regions (METHOD 8; paper 3.1)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import Tensor

from proposal_cache import Patches
from proposal_cache.generators.refine import add_patches, clip_box
from samcp.data.patch_transforms import AxisAlignedMap, patch_instances
from samcp.errors import DataError
from samcp.modeling.encoded_images import EncodedImages
from samcp.modeling.inference import Predictions
from samcp.modeling.patch_batch import PatchBatch
from samcp.result import Group, Labels, Result
from samcp.vocabulary import Vocabulary

if TYPE_CHECKING:
    from samcp.predictor import Predictor

_MIN_FRACTION_INSIDE = 0.8  # tau of METHOD 6, minimum fraction of a patch's area inside a region
_MARGIN = 0.1  # of a region's box on each side, so that its patches do not touch the border of the enlarged window

Words: TypeAlias = str | Sequence[str] | Vocabulary
Region: TypeAlias = NDArray[np.bool_] | Tensor | Sequence[float] | Instances


@dataclass(frozen=True, repr=False)
class Scene:
    """Encoded image with N patches; from calling a :class:`Predictor`.

    Words are classes as in ``samcp segment --words`` ("kite, sea~, person: man | woman": ``~`` marks stuff, words after
    a colon are synonyms), a file of them, a list of classes, or a :class:`Vocabulary`; the default is
    ``predictor.vocabulary``.

    Attributes:
        predictor: the model.
        image: (H, W, 3) uint8 RGB.
        patches: the N patches, at the size of the image.
        mapping: from the image to the network's input.
        encoded: feature maps and encoded patches.
    """

    predictor: "Predictor"
    image: NDArray[np.uint8]
    patches: Patches
    mapping: AxisAlignedMap
    encoded: EncodedImages

    def __repr__(self) -> str:
        return f"<Scene {self.image.shape[0]} x {self.image.shape[1]}: {len(self.patches)} patches>"

    @torch.no_grad()
    def segment(self, words: Words | None = None, *, strict: bool = True) -> Result:
        """Predict the classes of some words.

        >>> scene.segment("cat, dog")
        <Result 300 x 451: 1 cat>
        >>> scene.segment(["cat: kitten", "sky~"]).vocabulary.names
        ('cat', 'sky')

        Args:
            words: classes; None for ``predictor.vocabulary``.
            strict: raise an error if the encoder of names does not know a class; otherwise, that class is not found.

        Returns:
            Semantic, instance and panoptic segmentation (H, W), and both prompts for N patches and C classes.

        Raises:
            ValueError: the model has no text encoder and does not know all of the classes; the message has similar
                words.
        """
        predictor, model = self.predictor, self.predictor.model
        vocabulary = self._vocabulary(words)
        if strict:
            predictor.check_words(vocabulary)
        with predictor.lock:  # the model has one vocabulary at a time
            if vocabulary != model.vocabulary:
                model.set_vocabulary(vocabulary)
            [predictions] = model.predict(self.encoded, [self.patches])
            inference = copy.copy(model.inference)
            inference.sem_seg_scores = False  # a Result has labels
        on_cpu = Predictions(*(value.cpu() for value in vars(predictions).values()))
        return Result(vocabulary, self.image, self.patches, on_cpu, inference, predictor.has_instances)

    def label(self, words: Words | None = None) -> Labels:
        """Return Prompt I: the probability (N, C) that a patch has a label. Same as ``segment(words).labels``.

        >>> labels = scene.label("cat, dog, sky~")
        >>> labels.scores.shape == (len(scene.patches), 3)
        True
        >>> labels.names
        ('cat', 'dog', 'sky')
        """
        return self.segment(words).labels

    def group(self, where: int | Sequence[float], words: Words | None = None) -> Group:
        """Return Prompt II: the patches of the same instance. Same as ``segment(words).group(where)``.

        >>> cat = scene.group((225, 150), "cat")
        >>> cat.mask.shape, len(cat.patches) > 1
        ((300, 451), True)

        Args:
            where: index of a patch, or a point (x, y) in pixels.
            words: of things; the instance may be of any of them.

        Raises:
            ValueError: all words are stuff, no patch covers the point, or the model has no instance queries.
        """
        return self.segment(words).group(where)

    def inside(self, region: Region, *, finer: bool = False) -> "Scene":
        """Return the scene with the patches inside a region, for example to predict its parts (Fig. 5).

        >>> cat = scene.group((225, 150), "cat")
        >>> face = scene.inside(cat.mask).inside((100, 40, 360, 290), finer=True)
        >>> len(face.patches) > len(scene.inside(cat.mask).inside((100, 40, 360, 290)).patches)
        True

        Args:
            region: (H, W) bool mask, box (x0, y0, x1, y1) in pixels, or one instance of :attr:`Result.instances`.
            finer: add finer patches: the region is cropped and enlarged, its patches are made again and mapped back
                (Fig. 7).

        Raises:
            DataError: the region is of another image or is none of these.
        """
        whole = Patches.from_masks(self._mask(region)[None])
        patches = self.patches
        if finer and whole.areas[0]:
            x0, y0, x1, y1 = whole.boxes[0].tolist()
            dx, dy = _MARGIN * (x1 - x0), _MARGIN * (y1 - y0)
            patches = self._with_finer([(x0 - dx, y0 - dy, x1 + dx, y1 + dy)])
        return self.with_patches(patches.select(patches.iop(whole)[:, 0] >= _MIN_FRACTION_INSIDE))

    def denser(self, boxes: Sequence[Sequence[float]]) -> "Scene":
        """Return the scene with additional patches inside boxes, for example of small objects.

        Each box is cropped and enlarged, its patches are made again and mapped back. New ones that the box cuts, or
        that duplicate another patch, are dropped.

        >>> len(scene.denser([(100, 40, 360, 290)]).patches) > len(scene.patches)
        True

        Args:
            boxes: (x0, y0, x1, y1) in pixels.

        Raises:
            CacheError: a box is outside of the image.
        """
        return self.with_patches(self._with_finer(boxes))

    @torch.no_grad()
    def with_patches(self, patches: Patches) -> "Scene":
        """Return the scene with other patches of the same image; the backbone does not run again.

        >>> scene.with_patches(scene.patches.select(slice(10)))
        <Scene 300 x 451: 10 patches>

        Raises:
            DataError: the patches are of an image of another size.
        """
        check_size(self.mapping.original_size, patches)
        model = self.predictor.model
        instances = patch_instances(patches, self.mapping, model.roi_size)
        batch = PatchBatch.from_instances([instances], model.roi_size, model.device)
        return replace(self, patches=patches, encoded=model.encode_patches(self.encoded.features, batch))

    def _vocabulary(self, words: Words | None) -> Vocabulary:
        if words is None:
            return self.predictor.vocabulary
        return words if isinstance(words, Vocabulary) else Vocabulary.read(words)

    def _mask(self, region: Region) -> NDArray[np.bool_]:
        """Return the mask (H, W) of a region."""
        height, width = self.image.shape[:2]
        if isinstance(region, Instances):
            if len(region) != 1:
                raise DataError(f"region has {len(region)} instances, not 1; choose one, as in result.instances[0]")
            region = region.pred_masks.tensor[0]
        values: NDArray[Any] = np.asarray(region.cpu() if isinstance(region, Tensor) else region)
        if values.shape == (height, width):
            return values.astype(bool)
        if values.shape != (4,):
            raise DataError(
                f"region must be an ({height}, {width}) mask, a box (x0, y0, x1, y1) or one instance, but has shape "
                f"{values.shape}"
            )
        x0, y0, x1, y1 = clip_box(values.tolist(), height, width)
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = True
        return mask

    def _with_finer(self, boxes: Sequence[Sequence[float]]) -> Patches:
        height, width = self.image.shape[:2]
        windows = [clip_box(box, height, width) for box in boxes]
        return add_patches(self.patches, self.image, windows, self.predictor.generator)


def check_size(size: Sequence[int], patches: Patches, image: str = "the image") -> None:
    """Raise DataError unless patches are of an image of this (height, width)."""
    if tuple(size) != (patches.height, patches.width):
        raise DataError(
            f"{image} is {size[0]} x {size[1]} pixels (height x width), but its patches are for an image of "
            f"{patches.height} x {patches.width}; generate the patches from this image"
        )
