"""Results of the words that were asked for: segmentations, both prompts, pictures and files (METHOD 8; paper 4.1)."""

import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from proposal_cache import Patches, rle
from samcp.modeling.inference import Inference, Predictions
from samcp.result_files import save_results, without_suffix
from samcp.visualization.drawing import draw_prediction, vocabulary_metadata
from samcp.vocabulary import Vocabulary, nearest_words

TASKS = ("panoptic", "instance", "semantic")

_SHOWN = 10  # classes in the text of Labels
_DRAWING = threading.Lock()  # Matplotlib is not safe for threads


@dataclass(frozen=True, repr=False)
class Labels:
    """Prompt I: scores of the labels of N patches.

    Attributes:
        names: of the C classes.
        scores: (N, C) probability that a patch has a label.
    """

    names: tuple[str, ...]
    scores: Tensor

    def best(self, patch: int) -> tuple[str, float]:
        """Return the label of a patch with the highest score, and the score.

        >>> name, score = scene.label("cat, dog").best(0)
        >>> 0 <= score <= 1
        True
        """
        score, index = self.scores[patch].max(0)
        return self.names[int(index)], float(score)

    def __repr__(self) -> str:
        highest = self.scores.amax(0) if len(self.scores) else self.scores.new_zeros(len(self.names))
        order = highest.argsort(descending=True, stable=True).tolist()
        texts = [f"{self.names[c]} {highest[c]:.2f}" for c in order[:_SHOWN]] + ["..."] * (len(order) > _SHOWN)
        return f"<Labels of {len(self.scores)} patches; highest scores: {', '.join(texts)}>"


@dataclass(frozen=True, repr=False)
class Group:
    """Prompt II: the patches of one instance.

    Attributes:
        patches: indices of the patches, in ascending order.
        mask: (H, W) bool, their union.
        score: probability that the given patch belongs to an instance of the words.
    """

    patches: tuple[int, ...]
    mask: NDArray[np.bool_]
    score: float

    def __repr__(self) -> str:
        return f"<Group of {len(self.patches)} patches, {int(self.mask.sum())} pixels, score {self.score:.2f}>"


@dataclass(frozen=True, repr=False)
class Result:
    """Predictions for N patches and C classes; from :meth:`Scene.segment`. Segmentations are computed on first use.

    Attributes:
        vocabulary: the C classes.
        image: (H, W, 3) uint8 RGB.
        patches: the N patches, at the size of the image.
        predictions: query predictions, on the CPU.
        inference: converts predictions to segmentations.
        has_instances: whether the model has instance queries.
    """

    vocabulary: Vocabulary
    image: NDArray[np.uint8]
    patches: Patches
    predictions: Predictions
    inference: Inference
    has_instances: bool

    @cached_property
    def panoptic(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """Map of segment ids (H, W), 0 where there is none, and one dict per segment; see :meth:`Inference.panoptic`.

        >>> ids, segments = result.panoptic
        >>> ids.shape, [result.vocabulary.names[segment["category_id"]] for segment in segments]
        (torch.Size([300, 451]), ['cat'])
        """
        return self.inference.panoptic(self.predictions, self.patches)

    @cached_property
    def instances(self) -> Instances:
        """Scored instances of things, at most ``inference.top_instances``; see :meth:`Inference.instances`.

        >>> best = result.instances[0]
        >>> best.pred_masks.tensor.shape, result.vocabulary.names[best.pred_classes[0]]
        (torch.Size([1, 300, 451]), 'cat')
        """
        return self.inference.instances(self.predictions, self.patches)

    @cached_property
    def semantic(self) -> Tensor:
        """Class of each pixel (H, W), -1 where there is none; see :meth:`Inference.semantic`.

        >>> result.semantic.shape, int(result.semantic[150, 225])
        (torch.Size([300, 451]), 0)
        """
        return self.inference.semantic(self.predictions, self.patches)

    @cached_property
    def labels(self) -> Labels:
        """Prompt I of all patches (N, C).

        A patch gets the scores of the queries that it has a high affinity with, so that the scores also depend on the
        patches it is merged with (Fig. 5); see :meth:`Inference.patch_class_scores`.

        >>> result.labels.scores.shape == (len(result.patches), 2)
        True
        """
        return Labels(self._predicted.names, self.inference.patch_class_scores(self.predictions))

    def affinities(self, name: str | None = None) -> Tensor:
        """Return Prompt II of all pairs, (N, N): the probability that two patches belong to one instance of a class.

        >>> pairs = result.affinities("cat")
        >>> bool((pairs == pairs.T).all())
        True

        Args:
            name: of a thing class; default: any thing class.

        Raises:
            ValueError: the name is unknown or stuff, or the model has no instance queries.
        """
        return self.inference.same_instance(self.predictions, self._things(name))

    def group(self, where: int | Sequence[float], name: str | None = None) -> Group:
        """Return the patches of the instance that most probably contains a patch or a point, by Prompt II.

        >>> cat = result.group((225, 150), "cat")
        >>> bool(cat.mask[150, 225])
        True

        Args:
            where: index of a patch, or a point (x, y) in pixels: the patch that covers it and has the best score.
            name: of a thing class; default: any thing class.

        Raises:
            ValueError: see :meth:`affinities`; or no patch covers the point, or there is no such patch.
        """
        candidates, things = self._patches_at(where), self._things(name)
        members, score = self.inference.instance_around(self.predictions, things, candidates)
        indices = tuple(members.tolist())
        [mask] = rle.decode(self.patches.union([indices]), self.patches.height, self.patches.width)
        return Group(indices, mask, score)

    @property
    def task(self) -> str:
        """Default task of :meth:`draw` and :meth:`save`: "panoptic", or "semantic" if the model has no instances.

        >>> result.task
        'panoptic'
        """
        return "panoptic" if self.has_instances else "semantic"

    def draw(self, task: str | None = None) -> Image.Image:
        """Draw a segmentation over the image; a small image is enlarged.

        >>> picture = result.draw()
        >>> picture.mode, picture.height >= 300
        ('RGB', True)

        Args:
            task: one of TASKS; default: :attr:`task`.

        Raises:
            ValueError: the model has no instances, or there is no such task.
        """
        task = self._check_task(task)
        prediction: dict[str, Any]
        if task == "panoptic":
            prediction = {"panoptic_seg": self.panoptic}
        elif task == "instance":
            prediction = {"instances": self.confident_instances}
        else:
            prediction = {"sem_seg": self.semantic}
        with _DRAWING:
            return Image.fromarray(draw_prediction(self.image, prediction, vocabulary_metadata(self.vocabulary)))

    def save(self, folder: str | os.PathLike[str], name: str, task: str | None = None) -> list[Path]:
        """Write picture, map and json of this image; see :func:`save_results`, which writes one json for several.

        >>> [path.as_posix() for path in result.save("out", "cat.png")]
        ['out/cat.jpg', 'out/panoptic/cat.png', 'out/cat.json']

        Args:
            name: of the image under the folder, with or without its suffix.
            task: one of TASKS; default: :attr:`task`.

        Raises:
            ValueError: see :meth:`draw`.
            CacheError: the name is not a relative path under the folder.
        """
        key = without_suffix(name)
        return save_results([(key, name, self)], folder, self._check_task(task), f"{key}.json")

    def summary(self, task: str | None = None) -> str:
        """Describe what was found or, if nothing was, the best score and the threshold.

        >>> result.summary()
        '1 cat'

        Args:
            task: one of TASKS; default: :attr:`task`.

        Raises:
            ValueError: see :meth:`draw`.
        """
        task = self._check_task(task)
        names, is_thing = self.vocabulary.names, self.vocabulary.is_thing
        counts = self._count_segments(task)
        found = sorted(counts, key=lambda c: (not is_thing[c], c))
        texts = [f"{counts[c]} {names[c]}" if is_thing[c] and task != "semantic" else names[c] for c in found]
        return ", ".join(texts) or "nothing found" + self._best_score(task)

    def missing(self, task: str | None = None) -> tuple[str, ...]:
        """Return the names of the classes that were not found; arguments as in :meth:`summary`.

        >>> result.missing()
        ('dog',)
        """
        found = self._count_segments(self._check_task(task))
        return tuple(name for c, name in enumerate(self.vocabulary.names) if c not in found)

    def _count_segments(self, task: str) -> Counter[int]:
        """Return the number of segments of each class that was found."""
        if task == "semantic":
            return Counter(c for c in self.semantic.unique().tolist() if c >= 0)
        if task == "instance":
            return Counter(self.confident_instances.pred_classes.tolist())
        return Counter(segment["category_id"] for segment in self.panoptic[1])

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f"<Result {height} x {width}: {self.summary()}>"

    @property
    def confident_instances(self) -> Instances:
        """Those of :attr:`instances` with more than the minimum score of the model."""
        return self.instances[self.instances.scores > self.inference.score_threshold]

    def _best_score(self, task: str) -> str:
        """Return the best instance below the threshold as a part of a sentence; "" if there is none."""
        if task == "semantic" or not len(self.instances):
            return ""
        name, score = self._predicted.names[self.instances.pred_classes[0]], float(self.instances.scores[0])
        return f" (best: {name} {score:.3f}, threshold {self.inference.score_threshold:g})"

    @property
    def _predicted(self) -> Vocabulary:
        """The classes of the predictions."""
        return self.vocabulary

    def _check_task(self, task: str | None) -> str:
        if task is not None and task not in TASKS:
            raise ValueError(f"task is {task!r}; choose one of {', '.join(TASKS)}")
        if task in ("panoptic", "instance"):
            self._check_instances()
        return task or self.task

    def _check_instances(self) -> None:
        if not self.has_instances:
            raise ValueError(
                "this model has no instance queries and cannot distinguish instances; use one that was trained with "
                "MODEL.SAMCP.INSTANCE_QUERIES True"
            )

    def _things(self, name: str | None) -> list[int]:
        """Return the index of a thing class, or of all."""
        self._check_instances()
        names = self._predicted.names
        if name is None:
            things = [i for i, is_thing in enumerate(self._predicted.is_thing) if is_thing]
            if not things:
                raise ValueError("all words are stuff, which has no instances; add a thing class (without ~)")
            return things
        if name not in names:
            near = ", ".join(nearest_words(name, names) or names)
            raise ValueError(f"{name!r} is not one of the {len(names)} classes of this result; did you mean: {near}?")
        if not self._predicted.is_thing[names.index(name)]:
            raise ValueError(f"{name!r} is stuff, which has no instances; choose a thing class")
        return [names.index(name)]

    def _patches_at(self, where: int | Sequence[float]) -> list[int]:
        """Return a patch, or all patches that cover a point (x, y)."""
        if isinstance(where, int | np.integer):
            if not 0 <= where < len(self.patches):
                raise ValueError(f"there is no patch {where}; the scene has {len(self.patches)} patches")
            return [int(where)]
        x, y = (int(np.floor(value)) for value in where)
        height, width = self.patches.height, self.patches.width
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"the point ({x}, {y}) is outside the image of {width} x {height} pixels")
        covering = self.patches.covering(x, y)
        if not len(covering):
            raise ValueError(f"no patch covers the point ({x}, {y}); choose another one, or see Scene.denser")
        return covering.tolist()
