"""Tiny CLIP models, built with open_clip's classes and saved in its checkpoint format."""

import json
from pathlib import Path

import open_clip
import torch

_VISION = {
    "transformer": {"layers": 1, "width": 32, "image_size": 32, "patch_size": 16, "head_width": 16},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp", "image_size": 64},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 32},
}


def make_tiny_clip(folder: Path, kind: str) -> tuple[str, str]:
    """Register a model with random weights, and return its name and the path of its checkpoint.

    Args:
        kind: architecture of the image tower: transformer, convnext or resnet.
    """
    name = f"samcp_tiny_{kind}"
    config = {
        "embed_dim": 24,
        "vision_cfg": _VISION[kind],
        "text_cfg": {"layers": 1, "width": 32, "heads": 2, "context_length": 77, "vocab_size": 49408},
    }
    configs = folder / kind
    configs.mkdir(parents=True, exist_ok=True)
    (configs / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(configs)
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    for module in model.modules():  # non-trivial running statistics, as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save(model.state_dict(), folder / f"{name}.pt")
    return name, str(folder / f"{name}.pt")
