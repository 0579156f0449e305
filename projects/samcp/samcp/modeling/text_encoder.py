"""Class embeddings: of CLIP's text encoder, or learned (METHOD 3, 5)."""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LearnedClassEmbedding(nn.Module):
    """A table of class embeddings that is trained with the model, for a fixed vocabulary without text weights.

    Args:
        class_names: the vocabulary; its order is the table's.
        dim: width of an embedding.
    """

    rows: Tensor

    def __init__(self, class_names: Sequence[str], dim: int) -> None:
        super().__init__()
        self.learned_names = self.class_names = tuple(class_names)
        self.dim = dim
        self.weight = nn.Parameter(F.normalize(torch.randn(len(class_names), dim), dim=-1))
        self.register_buffer("rows", torch.arange(len(class_names)), persistent=False)

    def forward(self) -> Tensor:
        """(C, dim)."""
        return self.weight[self.rows]

    def set_names(self, class_names: Sequence[str]) -> None:
        """Give the embeddings of these classes, in this order, from now on.

        Raises:
            ValueError: one of them was not learned.
        """
        unknown = [name for name in class_names if name not in self.learned_names]
        if unknown:
            raise ValueError(
                f"this model has learned the classes {', '.join(self.learned_names)}, and no {', '.join(unknown)}; "
                "for other words use a model trained with MODEL.SAMCP.TEXT.ENCODER clip"
            )
        self.class_names = tuple(class_names)
        self.rows = torch.tensor([self.learned_names.index(name) for name in class_names], device=self.rows.device)


class CLIPClassEmbedding(nn.Module):
    """Embeddings of class names by a frozen open_clip text encoder. Nothing of it is in the state dict.

    Args:
        class_names: the vocabulary, any words.
        name: open_clip model name.
        pretrained: an open_clip tag, or a local checkpoint file.
        prompts: templates with one ``{}``; a class is the mean over them.
    """

    weight: Tensor

    def __init__(self, class_names: Sequence[str], *, name: str, pretrained: str, prompts: Sequence[str]) -> None:
        super().__init__()
        self.name, self.pretrained, self.prompts = name, pretrained, tuple(prompts)
        self.register_buffer("weight", torch.zeros(0), persistent=False)
        self.set_names(class_names)
        self.dim = self.weight.shape[-1]

    def forward(self) -> Tensor:
        """(C, dim), unit length."""
        return self.weight

    def set_names(self, class_names: Sequence[str]) -> None:
        """Give the embeddings of these classes, any words, from now on."""
        self.class_names = tuple(class_names)
        self.weight = embed_names(class_names, self.name, self.pretrained, self.prompts).to(self.weight.device)


ClassEmbedding = LearnedClassEmbedding | CLIPClassEmbedding


@torch.no_grad()
def embed_names(class_names: Sequence[str], name: str, pretrained: str, prompts: Sequence[str]) -> Tensor:
    """Embed ``class_names`` with open_clip's text encoder: (C, dim), each the normalised mean over ``prompts``."""
    import open_clip

    if name not in open_clip.list_models():
        raise ValueError(
            f"MODEL.SAMCP.TEXT.NAME is {name!r}, which open_clip does not know; see open_clip.list_models()"
        )
    known = open_clip.list_pretrained_tags_by_model(name)
    if not os.path.isfile(pretrained) and pretrained not in known:
        raise FileNotFoundError(
            f"MODEL.SAMCP.TEXT.PRETRAINED is {pretrained!r}: neither a file nor a tag of {name} ({', '.join(known)})"
        )
    try:
        model = open_clip.create_model(name, pretrained=pretrained).eval()
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"the text weights {pretrained!r} of {name} cannot be had ({error}); give a local checkpoint file as "
            "MODEL.SAMCP.TEXT.PRETRAINED, or train a closed vocabulary with MODEL.SAMCP.TEXT.ENCODER learned"
        ) from error
    tokenizer = open_clip.get_tokenizer(name)
    rows = []
    for class_name in class_names:
        tokens = tokenizer([prompt.format(class_name) for prompt in prompts])
        rows.append(F.normalize(model.encode_text(tokens).float(), dim=-1).mean(0))
    return F.normalize(torch.stack(rows), dim=-1)
