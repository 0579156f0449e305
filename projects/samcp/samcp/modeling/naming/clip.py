"""Naming by CLIP, as in FC-CLIP's out-of-vocabulary classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from samcp.miniature.captions import check_words, unknown_words
from samcp.model_zoo import SMALL_CLIP
from samcp.modeling.backbone.clip import DENSE, CLIPBackbone
from samcp.modeling.class_embedding import CLIPClassEmbedding
from samcp.modeling.clip import load_clip
from samcp.modeling.naming.base import Namer, Words


class CLIPNamer(Namer):
    """Namer by mask pooling in CLIP's image tower; probabilities are over the asked classes only.

    Args:
        name, pretrained: of a ConvNeXt or ResNet; see :func:`samcp.modeling.clip.load_clip`.
        prompts: templates; see :class:`CLIPClassEmbedding`.
        min_size: see :class:`Namer`.
    """

    def __init__(self, *, name: str, pretrained: str, prompts: Sequence[str], min_size: int) -> None:
        super().__init__(min_size)
        clip: Any = load_clip(name, pretrained)
        self.tower = CLIPBackbone(clip)
        mean, std = clip.visual.image_mean, clip.visual.image_std
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (mean, std))
        self._name = name
        self._embed = lambda words: CLIPClassEmbedding(words, name=name, pretrained=pretrained, prompts=prompts)

    @torch.no_grad()
    def dense(self, image: Tensor) -> Tensor:
        tower = self.tower.to(image.device)
        features: Tensor = tower((self.resize(image) - self.mean.to(image)) / self.std.to(image))[DENSE]
        return features

    def knows(self, names: Sequence[str]) -> bool:
        return self._name != SMALL_CLIP or not unknown_words(names)

    def check_words(self, words: Words) -> None:
        if self._name == SMALL_CLIP:
            check_words(word for names in words for word in names)

    def set_words(self, words: Words) -> None:
        known = self.distinct(words)
        self.embedding = self._embed([words[i] for i in known]) if known else None
        self.known, self.num_classes = known, len(words)

    def probabilities(self, dense: Tensor, weights: Tensor) -> Tensor:
        result = dense.new_zeros(len(weights), self.num_classes)
        if self.embedding is not None:
            words = self.embedding.to(dense.device)()
            logits = self.tower.logit_scale * self.tower.pool(dense, weights) @ words.T
            result[:, self.known] = self.embedding.max_over_words(logits).softmax(-1).to(result)
        return result * (weights.flatten(1).sum(1, keepdim=True) > 0)
