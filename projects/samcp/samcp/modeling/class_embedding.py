"""Class embeddings: of CLIP's text encoder, or learned (METHOD 3, 5, 8)."""

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samcp.errors import UsageError
from samcp.modeling.clip import check_clip, load_clip

logger = logging.getLogger(__name__)

Words = Sequence[Sequence[str]]  # of each class, its name first

_BATCH = 256  # texts encoded at a time
_VERSION = 1  # of what is written to disk


class ClassEmbedding(nn.Module, ABC):
    """Embeddings of the W words of C classes; a class may have several words.

    Attributes:
        dim: width of an embedding.
        class_of: (W,) the class of each word.
        names: (C,) the row of each class's first word, its name.
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
        """(W, dim)."""

    def check_words(self, words: Words) -> None:
        """Make sure that `set_words` can give these classes, without the work of it; any words will do by default.

        Raises:
            ValueError: see there.
        """

    @abstractmethod
    def set_words(self, words: Words) -> None:
        """Give the embeddings of these classes from now on.

        Raises:
            ValueError: they were learned, and of other classes.
        """

    def best(self, values: Tensor) -> Tensor:
        """A class's value is that of the best of its words (METHOD 8, B.3): (.., W) to (.., C)."""
        if len(self.names) == len(self.class_of):
            return values
        shape = (*values.shape[:-1], len(self.names))
        index = self.class_of.expand_as(values)
        return values.new_zeros(shape).scatter_reduce(-1, index, values, "amax", include_self=False)

    def _number(self, counts_of_words: Sequence[int], device: torch.device) -> None:
        counts = torch.tensor(counts_of_words, device=device)
        self.class_of = torch.arange(len(counts), device=device).repeat_interleave(counts)
        self.names = counts.cumsum(0) - counts


class LearnedClassEmbedding(ClassEmbedding):
    """A table that is trained with the model, for a fixed vocabulary without text weights; synonyms do not matter.

    Args:
        words: of each class; the order of the classes is the table's.
        dim: width of an embedding.
    """

    rows: Tensor

    def __init__(self, words: Words, dim: int) -> None:
        super().__init__()
        self.learned_names = [name for name, *_ in words]
        self.dim = dim
        self.weight = nn.Parameter(F.normalize(torch.randn(len(words), dim), dim=-1))
        self.register_buffer("rows", None, persistent=False)
        self.set_words(words)

    def forward(self) -> Tensor:
        return self.weight[self.rows]

    def check_words(self, words: Words) -> None:
        unknown = [name for name, *_ in words if name not in self.learned_names]
        if unknown:
            raise ValueError(
                f"this model has learned the classes {', '.join(self.learned_names)}, and no {', '.join(unknown)}; "
                "for other words use a model trained with CLIP's text encoder"
            )

    def set_words(self, words: Words) -> None:
        self.check_words(words)
        rows = [self.learned_names.index(name) for name, *_ in words]
        self.rows = torch.tensor(rows, device=self.weight.device)
        self._number([1] * len(rows), self.weight.device)


class CLIPClassEmbedding(ClassEmbedding):
    """Frozen embeddings of all words by a CLIP text encoder, which is gone once they are made.

    Args:
        words: of each class.
        name, pretrained: see :func:`samcp.modeling.clip.load_clip`.
        prompts: templates with one ``{}``; the embeddings of a word in all of them are averaged.

    Raises:
        CheckpointError, UsageError: see :func:`embed_words`.
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

    def set_words(self, words: Words) -> None:
        device = self.weight.device
        flat = [word for of_class in words for word in of_class]
        self.weight = embed_words(flat, self.name, self.pretrained, self.prompts).to(device)
        self._number([len(of_class) for of_class in words], device)


def embed_words(words: Sequence[str], name: str, pretrained: str, prompts: Sequence[str]) -> Tensor:
    """CLIP's embeddings of words: (W, dim), each the normalised mean over ``prompts``.

    They are kept on disk, under a hash of all that they follow from, in the folder SAMCP_CACHE or ~/.cache/samcp. So an
    evaluation needs no text encoder a second time, and none at all where the folder comes along.

    Raises:
        CheckpointError: CLIP is needed, and cannot be had.
        UsageError: there is no template, or one has not one place for a word.
    """
    check_prompts(prompts)
    check_clip(name, pretrained)
    file = _cache_folder() / f"{_hash(words, name, pretrained, prompts)}.safetensors"
    try:
        return load_file(file)["embeddings"]
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError) as error:
        logger.warning("%s is damaged (%s) and made anew", file, error)
    embeddings = _embed(words, name, pretrained, prompts)
    _keep(embeddings, file)
    return embeddings


def check_prompts(prompts: Sequence[str]) -> None:
    if not prompts:
        raise UsageError('prompts is empty; give at least one template, such as "a photo of a {}."')
    for prompt in prompts:
        around = prompt.split("{}")
        if len(around) != 2 or any(brace in part for part in around for brace in "{}"):
            raise UsageError(
                f"prompts has the template {prompt!r}; write one {{}} in it, where the word goes, and no other brace, "
                'as in "a photo of a {}."'
            )


@torch.no_grad()
def _embed(words: Sequence[str], name: str, pretrained: str, prompts: Sequence[str]) -> Tensor:
    import open_clip

    model, tokenizer = load_clip(name, pretrained), open_clip.get_tokenizer(name)
    texts = [prompt.format(word) for word in words for prompt in prompts]
    rows = [
        F.normalize(model.encode_text(tokenizer(texts[first : first + _BATCH])).float(), dim=-1)
        for first in range(0, len(texts), _BATCH)
    ]
    return F.normalize(torch.cat(rows).unflatten(0, (len(words), len(prompts))).mean(1), dim=-1)


def _cache_folder() -> Path:
    return Path(os.environ.get("SAMCP_CACHE") or Path.home() / ".cache" / "samcp") / "text_embeddings"


def _hash(words: Sequence[str], name: str, pretrained: str, prompts: Sequence[str]) -> str:
    weights = _digest(pretrained) if os.path.isfile(pretrained) else pretrained
    content = json.dumps([_VERSION, name, weights, list(prompts), list(words)])
    return hashlib.sha256(content.encode()).hexdigest()


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _keep(embeddings: Tensor, file: Path) -> None:
    """Write a file that is whole or not there, whoever else writes it; one that cannot be written is done without."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeddings": embeddings}, partial)
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        logger.warning("text embeddings are not kept: %s (SAMCP_CACHE names another folder)", error)
