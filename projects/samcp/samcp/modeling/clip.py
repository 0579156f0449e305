"""Loading of open_clip's CLIP models."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from samcp.errors import CheckpointError
from samcp.model_zoo import SMALL_CLIP, SMALL_CLIP_WEIGHTS

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def load_clip(name: str, pretrained: str) -> Any:
    """Return a CLIP model on the CPU, frozen and in evaluation mode; the last one is cached.

    Args:
        name: of a model in open_clip, or samcp-clip-lite, the CLIP of the drawn scenes.
        pretrained: one of the tags of the model, or a checkpoint file, which needs no network.

    Raises:
        CheckpointError: open_clip has no such model, or the weights cannot be loaded or are of another model.
    """
    import open_clip  # slow to import, and not needed for learned class embeddings

    from samcp.miniature import small_clip

    check_clip(name, pretrained)
    file = find_weights(name, pretrained)
    if not os.path.isfile(file):
        # A warning, so that it is visible without logging configuration: the download may take minutes.
        logger.warning(
            "loading weights %r of %s, from the network unless they are cached; without a network, set `pretrained` to "
            "a local checkpoint file, or set HF_HUB_OFFLINE=1 to disable the download",
            pretrained,
            name,
        )
    try:
        if name == SMALL_CLIP:
            model: nn.Module = small_clip.load_weights(Path(file))
        else:
            with _quiet_hub():
                # open_clip only warns if weights were trained with another activation than that of the model.
                quick_gelu = bool(open_clip.get_pretrained_cfg(name, file).get("quick_gelu"))
                model = open_clip.create_model(name, pretrained=file, force_quick_gelu=quick_gelu)
    except Exception as error:  # a failed download or an unrelated file raises many types
        raise CheckpointError(
            f"cannot load the weights {pretrained!r} of {name} ({error!r:.300}); set `pretrained` to a local "
            "checkpoint file of this model"
        ) from error
    return model.eval().requires_grad_(False)


def find_weights(name: str, pretrained: str) -> str:
    """Return the file of a shipped model's tag; other texts are returned unchanged."""
    return str(SMALL_CLIP_WEIGHTS.get(pretrained, pretrained)) if name == SMALL_CLIP else pretrained


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Disable warnings of huggingface_hub, which are logged for each retry."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def check_clip(name: str, pretrained: str) -> None:
    """Raise CheckpointError unless open_clip has the model, and `pretrained` is one of its tags or a file."""
    import open_clip

    from samcp.miniature import small_clip

    small_clip.register()
    if name not in open_clip.list_models():
        raise CheckpointError(f"name is {name!r}, which is not a model of open_clip; see open_clip.list_models()")
    tags = [*SMALL_CLIP_WEIGHTS] if name == SMALL_CLIP else open_clip.list_pretrained_tags_by_model(name)
    if not os.path.isfile(pretrained) and pretrained not in tags:
        raise CheckpointError(f"pretrained is {pretrained!r}: neither a file nor a tag of {name} ({', '.join(tags)})")
