"""MobileSAM: SAM's prompt encoder and mask decoder with a TinyViT-5M image encoder (arXiv:2306.14289)."""

import re
from typing import Any

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

_DIM = 256  # of SAM's image embedding
_IMAGE_CLASSIFIER = re.compile(r"(norm_)?head\.")
_RENAMED = (  # published name -> name in timm
    (re.compile(r"^patch_embed\.seq\.0\."), "patch_embed.conv1."),
    (re.compile(r"^patch_embed\.seq\.2\."), "patch_embed.conv2."),
    (re.compile(r"^layers\.(\d)\.downsample\."), lambda found: f"stages.{int(found[1]) + 1}.downsample."),
    (re.compile(r"^layers\."), "stages."),
    (re.compile(r"\.c\."), ".conv."),
)


class TinyViTEncoder(nn.Module):
    """MobileSAM's image encoder.

    It is timm's TinyViT-5M without the stride of the last stage, followed by the neck of SAM's own encoder. The
    published names of its weights are renamed while they are loaded; those of its ImageNet classifier are skipped.

    Args:
        img_size: side length of the images.
    """

    def __init__(self, img_size: int = 1024) -> None:
        super().__init__()
        self.img_size = img_size
        dims = (64, 128, 160, 320)
        vit = TinyVit(embed_dims=dims, num_heads=(2, 4, 5, 10), drop_path_rate=0.0)
        last: Any = vit.stages[-1]
        last.downsample.conv2.conv.stride = (1, 1)
        self.patch_embed = vit.patch_embed
        self.stages = vit.stages
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], _DIM, 1, bias=False),
            LayerNorm2d(_DIM),
            nn.Conv2d(_DIM, _DIM, 3, padding=1, bias=False),
            LayerNorm2d(_DIM),
        )
        self.register_load_state_dict_pre_hook(_rename_published)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the embedding (B, 256, S/16, S/16) of normalized, padded images (B, 3, S, S)."""
        return self.neck(self.stages(self.patch_embed(image)))


def _rename_published(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the weights of the encoder in a state dict, in place; names of timm remain as they are."""
    for name in [name for name in state if name.startswith(prefix)]:
        weight, short = state.pop(name), name.removeprefix(prefix)
        if _IMAGE_CLASSIFIER.match(short):
            continue
        for published, new in _RENAMED:
            short = published.sub(new, short)
        state[prefix + short] = weight


def build_mobile_sam(img_size: int = 1024) -> Sam:
    """Build MobileSAM with random weights."""
    grid = (img_size // 16, img_size // 16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=_DIM, mlp_dim=2048, num_heads=8)
    return Sam(
        TinyViTEncoder(img_size),
        PromptEncoder(_DIM, grid, (img_size, img_size), mask_in_chans=16),
        MaskDecoder(transformer_dim=_DIM, transformer=transformer),
    ).eval()
