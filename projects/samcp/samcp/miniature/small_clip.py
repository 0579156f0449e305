"""Small CLIP of the drawn scenes: open_clip's CLIP class with a small ConvNeXt and a small text tower."""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file, save
from timm.models import PretrainedCfg, build_model_with_cfg, register_model
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from proposal_cache.store.durable import write_durably
from proposal_cache.torch_files import halve
from samcp.miniature.captions import known_words
from samcp.model_zoo import SMALL_CLIP

_CONFIG = Path(__file__).with_name(f"{SMALL_CLIP}.json")
_ROWS, _TOKENS = "token_embedding.weight", "token_embedding.tokens"


@register_model
def samcp_convnext_lite(pretrained: bool = False, **options: Any) -> ConvNeXt:
    """Return the image tower, a ConvNeXt that learns from few images.

    Compared with others, it has batch normalization, overlapping windows in its stem, and no layer scale.
    """
    options["pretrained_cfg"] = PretrainedCfg()  # there are none, which timm would warn of
    sizes = {"depths": (2, 2, 4, 2), "dims": (32, 64, 128, 160)}
    layers = {"stem_type": "overlap_act", "norm_layer": "batchnorm2d", "conv_mlp": True, "ls_init_value": None}
    every: dict[str, Any] = {**sizes, **layers, **options}
    model: ConvNeXt = build_model_with_cfg(ConvNeXt, "samcp_convnext_lite", pretrained, **every)
    return model


@lru_cache(maxsize=1)
def register() -> None:
    """Add the model to open_clip."""
    open_clip.add_model_config(_CONFIG)


def build() -> open_clip.CLIP:
    """Return the model with random weights.

    Those of the image tower are larger than ConvNeXt's own, with which it is nearly linear and long learns nothing.
    """
    register()
    model = open_clip.CLIP(**open_clip.get_model_config(SMALL_CLIP))
    for module in model.visual.trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=model.visual.image_size)))
    return model


def save_weights(path: Path, model: open_clip.CLIP) -> None:
    """Write a file in half precision, with the embeddings of the tokens of known words only."""
    state = {name: tensor.contiguous() for name, tensor in halve(model.state_dict()).items()}
    tokens = known_tokens()
    write_durably(path, save({**state, _ROWS: state[_ROWS][tokens], _TOKENS: tokens.int()}))


def load_weights(path: Path) -> open_clip.CLIP:
    """Return the model with the weights of a file; embeddings of other tokens are 0.

    Raises:
        KeyError, RuntimeError, OSError, SafetensorError: the file is missing, damaged, or of another model.
    """
    model = build()
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    rows = torch.zeros_like(model.token_embedding.weight)
    rows[state.pop(_TOKENS).long()] = state[_ROWS]
    model.load_state_dict({**state, _ROWS: rows})
    return model


def known_tokens() -> Tensor:
    """Return the tokens of captions, sorted, (T,)."""
    register()
    tokenizer = open_clip.get_tokenizer(SMALL_CLIP)
    return torch.unique(tokenizer([*sorted(known_words()), ".", ""]))
