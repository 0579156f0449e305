"""Class embeddings, computed by CLIP's text encoder or learned (METHOD 3, 5, 8)."""

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from proposal_cache.errors import StorageError
from proposal_cache.store.durable import make_directory, write_durably
from samcp.errors import UsageError
from samcp.miniature.captions import check_words
from samcp.model_zoo import SMALL_CLIP
from samcp.modeling.clip import check_clip, find_weights, load_clip
from samcp.user_cache import cache_folder
from samcp.vocabulary import nearest_words, word_key

logger = logging.getLogger(__name__)

Words = Sequence[Sequence[str]]  # one sequence per class, the name of the class first

_BATCH = 256  # texts per call of the text encoder
_VERSION = 1  # of the cache files
_SHOWN = 20  # learned classes in a message


class ClassEmbedding(nn.Module, ABC):
    """Embeddings of the W words of C classes; a class may have several words.

    Attributes:
        dim: width of an embedding.
        class_of: (W,) class of each word.
        names: (C,) index of the first word of each class, its name.
    """

    dim: int
    class_of: Tensor
    names: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_of", None, persistent=False)
        self.register_buffer("names", None, persistent=False)

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the embeddings of all words, (W, dim)."""

    def check_words(self, words: Words) -> None:
        """Raise ValueError if `set_words` would reject these classes; by default all words are accepted."""

    @abstractmethod
    def set_words(self, words: Words) -> None:
        """Change the classes.

        Raises:
            ValueError: the embeddings are learned and do not include all of the classes.
        """

    def max_over_words(self, values: Tensor) -> Tensor:
        """Return the maximum over the words of each class, (.., W) -> (.., C) (METHOD 8, B.3)."""
        if len(self.names) == len(self.class_of):
            return values
        shape = (*values.shape[:-1], len(self.names))
        index = self.class_of.expand_as(values)
        return values.new_zeros(shape).scatter_reduce(-1, index, values, "amax", include_self=False)

    def _index_words(self, words_per_class: Sequence[int], device: torch.device) -> None:
        counts = torch.tensor(words_per_class, device=device)
        self.class_of = torch.arange(len(counts), device=device).repeat_interleave(counts)
        self.names = counts.cumsum(0) - counts


class LearnedClassEmbedding(ClassEmbedding):
    """Trainable embedding table for a fixed vocabulary without a text encoder; synonyms are ignored.

    Args:
        words: words per class, in the order of the table's rows.
        dim: width of an embedding.
    """

    rows: Tensor

    def __init__(self, words: Words, dim: int) -> None:
        super().__init__()
        self.learned_names = [name for name, *_ in words]
        self._row_of = {word_key(name): row for row, name in enumerate(self.learned_names)}
        self.dim = dim
        self.weight = nn.Parameter(F.normalize(torch.randn(len(words), dim), dim=-1))
        self.register_buffer("rows", None, persistent=False)
        self.set_words(words)

    def forward(self) -> Tensor:
        return self.weight[self.rows]

    def check_words(self, words: Words) -> None:
        unknown = [name for name, *_ in words if word_key(name) not in self._row_of]
        if unknown:
            near = [
                f"{name!r} (near: {', '.join(nearest_words(name, self.learned_names)) or 'nothing'})"
                for name in unknown
            ]
            known = ", ".join(self.learned_names[:_SHOWN]) + (", ..." if len(self.learned_names) > _SHOWN else "")
            raise ValueError(
                f"this model has not learned {'; '.join(near)}; it knows {len(self.learned_names)} classes: {known}; "
                "for other words use a model trained with CLIP's text encoder"
            )

    def set_words(self, words: Words) -> None:
        self.check_words(words)
        rows = [self._row_of[word_key(name)] for name, *_ in words]
        self.rows = torch.tensor(rows, device=self.weight.device)
        self._index_words([1] * len(rows), self.weight.device)


class AgnosticClassEmbedding(ClassEmbedding):
    """One trainable embedding for all words: the model finds objects, and another one names them.

    Args:
        words: words per class.
        dim: width of the embedding.
    """

    def __init__(self, words: Words, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(F.normalize(torch.randn(1, dim), dim=-1))
        self.set_words(words)

    def forward(self) -> Tensor:
        return self.weight.expand(len(self.names), -1)

    def set_words(self, words: Words) -> None:
        self._index_words([1] * len(words), self.weight.device)


class CLIPClassEmbedding(ClassEmbedding):
    """Frozen embeddings of all words by a CLIP text encoder, which is deleted after computing them.

    Args:
        words: words per class.
        name, pretrained: see :func:`samcp.modeling.clip.load_clip`.
        prompts: templates with one ``{}``; the embeddings of a word are averaged over all templates.

    Raises:
        CheckpointError, UsageError: see :func:`embed_words`.
        UsageError: the model is samcp-clip-lite, and no caption of its training has a word.
    """

    weight: Tensor

    def __init__(self, words: Words, *, name: str, pretrained: str, prompts: Sequence[str]) -> None:
        super().__init__()
        self.name, self.pretrained, self.prompts = name, pretrained, tuple(prompts)
        self.register_buffer("weight", torch.zeros(0), persistent=False)
        self.set_words(words)
        self.dim = self.weight.shape[-1]

    def forward(self) -> Tensor:
        return self.weight

    def check_words(self, words: Words) -> None:
        if self.name == SMALL_CLIP:
            check_words(word for class_words in words for word in class_words)

    def set_words(self, words: Words) -> None:
        self.check_words(words)
        device = self.weight.device
        flat = [word for class_words in words for word in class_words]
        self.weight = embed_words(flat, self.name, self.pretrained, self.prompts).to(device)
        self._index_words([len(class_words) for class_words in words], device)


def embed_words(words: Sequence[str], name: str, pretrained: str, prompts: Sequence[str]) -> Tensor:
    """Return CLIP's embeddings of words, (W, dim), each the normalised mean over ``prompts``.

    They are cached in the folder SAMCP_CACHE or ~/.cache/samcp, under a hash of the words, the model and the prompts.
    The text encoder is not needed for cached embeddings, also if the folder is copied to another machine.

    Raises:
        CheckpointError: the embeddings are not cached, and CLIP cannot be loaded.
        UsageError: there is no template, or a template does not have exactly one ``{}``.
    """
    check_prompts(prompts)
    check_clip(name, pretrained)
    file = cache_folder("text_embeddings") / f"{_hash(words, name, pretrained, prompts)}.safetensors"
    try:
        return load_file(file)["embeddings"]
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError) as error:
        logger.warning("%s is damaged (%s); computing the embeddings again", file, error)
    embeddings = _embed(words, name, pretrained, prompts)
    _write_cache(embeddings, file)
    return embeddings


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise UsageError unless there is a template and each has exactly one ``{}``."""
    if not prompts:
        raise UsageError('prompts is empty; give at least one template, such as "a photo of a {}."')
    for prompt in prompts:
        parts = prompt.split("{}")
        if len(parts) != 2 or any(brace in part for part in parts for brace in "{}"):
            raise UsageError(
                f"prompts has the template {prompt!r}; it must contain one {{}}, the place of the word, and no other "
                'brace, as in "a photo of a {}."'
            )


def _embed(words: Sequence[str], name: str, pretrained: str, prompts: Sequence[str]) -> Tensor:
    import open_clip

    return encode_words(load_clip(name, pretrained), open_clip.get_tokenizer(name), words, prompts)


@torch.no_grad()
def encode_words(model: Any, tokenizer: Any, words: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Compute the embeddings of words by a model and tokenizer of open_clip; see :func:`embed_words`."""
    texts = [prompt.format(word) for word in words for prompt in prompts]
    rows = [
        F.normalize(model.encode_text(tokenizer(texts[first : first + _BATCH])).float(), dim=-1)
        for first in range(0, len(texts), _BATCH)
    ]
    return F.normalize(torch.cat(rows).unflatten(0, (len(words), len(prompts))).mean(1), dim=-1)


def _hash(words: Sequence[str], name: str, pretrained: str, prompts: Sequence[str]) -> str:
    pretrained = find_weights(name, pretrained)
    weights = _digest(pretrained) if os.path.isfile(pretrained) else pretrained
    content = json.dumps([_VERSION, name, weights, list(prompts), list(words)])
    return hashlib.sha256(content.encode()).hexdigest()


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_cache(embeddings: Tensor, file: Path) -> None:
    """Write a cache file atomically; log a warning if it cannot be written."""
    try:
        make_directory(file.parent)
        write_durably(file, save({"embeddings": embeddings}))
    except StorageError as error:
        logger.warning("cannot cache text embeddings: %s (set SAMCP_CACHE to use another folder)", error)
