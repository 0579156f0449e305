"""CLIP models of open_clip."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import nn

from samcp.errors import CheckpointError

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def load_clip(name: str, pretrained: str) -> Any:
    """A CLIP model, on the CPU, frozen and in evaluation mode; loaded once for all who ask for the same.

    Args:
        name: of open_clip's models.
        pretrained: one of open_clip's tags for it, or a checkpoint file, which is read without any network.

    Raises:
        CheckpointError: open_clip does not know the name, or the weights cannot be had, or are of another model.
    """
    import open_clip  # slow to import, and not needed by a closed vocabulary

    check_clip(name, pretrained)
    if not os.path.isfile(pretrained):
        # A warning, so that it is seen where nobody has set up logging: what follows may take minutes.
        logger.warning(
            "the weights %r of %s are fetched from the network unless they were before; where there is none, give a "
            "local checkpoint file as `pretrained`, or set HF_HUB_OFFLINE=1 to have it not tried",
            pretrained,
            name,
        )
    try:
        with _quiet_hub():
            model: nn.Module = open_clip.create_model(name, pretrained=pretrained)
    except Exception as error:  # what a failing download or a foreign file raises has no common base
        raise CheckpointError(
            f"the weights {pretrained!r} of {name} cannot be had ({error!r:.300}); give a local checkpoint file of "
            "this model as `pretrained`"
        ) from error
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the warnings of huggingface_hub, one for each try to reach the network."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def check_clip(name: str, pretrained: str) -> None:
    """Raise CheckpointError unless open_clip knows the model, and its weights are a tag of it or a file."""
    import open_clip

    if name not in open_clip.list_models():
        raise CheckpointError(f"name is {name!r}, which open_clip does not know; see open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not os.path.isfile(pretrained) and pretrained not in tags:
        raise CheckpointError(f"pretrained is {pretrained!r}: neither a file nor a tag of {name} ({', '.join(tags)})")
