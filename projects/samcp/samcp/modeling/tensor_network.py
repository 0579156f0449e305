"""Network as one function of padded tensors, for runtimes such as ONNX Runtime."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling import FPN
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, Instances
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.ops import roi_align

from samcp.modeling.backbone.clip import CLIPFPN
from samcp.modeling.meta_arch import SAMCP
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.patch_encoder import RoIEmbedding
from samcp.modeling.roi_align import SAMPLES

# Sizes of 0 and 1 would be fixed by torch.export.
_MIN_PATCHES = 2
_MIN_CELLS = 2  # sides of the coarsest map


class TensorNetwork(nn.Module):
    """Network of a model, from image and patches to predictions of queries.

    The shape of every tensor follows from the shapes of the inputs, as `torch.export` requires: padding is computed
    too, and each box is pooled from all levels. Scores of a CLIP backbone or a namer are not included.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: SAMCP) -> None:
        super().__init__()
        self.maps = _FPNMaps(model.backbone, model.in_features)
        self.patch_encoder = model.patch_encoder
        self.query_builder = model.query_builder
        self.decoder = model.decoder
        self.classifier = model.classifier
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)

    def forward(
        self,
        image: Tensor,
        image_size: Tensor,
        boxes: Tensor,
        roi_masks: Tensor,
        valid: Tensor,
        text: Tensor,
        semantic_words: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute the predictions of M queries: those of S words, then those of N patches, if the model has such.

        Args:
            image: (1, 3, H, W) float in [0, 255], with any padding at the right and at the bottom.
            image_size: (1, 2) int64, height and width without padding.
            boxes: (1, N, 4) XYXY in pixels.
            roi_masks: (1, N, S, S) in [0, 1], masks resampled over their boxes.
            valid: (1, N) bool, False for padding.
            text: (W, E) embeddings of words.
            semantic_words: (S,) int64, the words with a semantic query.

        Returns:
            Probabilities of each word, (1, M, W), and affinities to each patch, (1, M, N), undefined for padding.
        """
        levels = self.maps(self._normalize(image, image_size))
        patches = PatchBatch(boxes, roi_masks, valid, image_size)
        embed = _LevelwiseEmbedding(self.patch_encoder.roi_embedding, levels)
        masks = roi_masks if self.patch_encoder.mask_roi else None
        content, position = self.patch_encoder.attend(embed(boxes, masks), patches)
        queries = self.query_builder(
            embeddings=text, semantic_classes=semantic_words, features=content, patches=patches
        )
        output = self.decoder(
            queries=queries, features=content, position=position, patches=patches, levels=levels, embed_boxes=embed
        )[-1]
        return self.classifier(output.queries, text).sigmoid(), output.affinity_logits.sigmoid()

    def _normalize(self, image: Tensor, image_size: Tensor) -> Tensor:
        height, width = image_size.view(2, 1)
        rows = torch.arange(image.shape[2], device=image.device) < height
        columns = torch.arange(image.shape[3], device=image.device) < width
        return (image - self.pixel_mean) / self.pixel_std * (rows[:, None] & columns)


def network_inputs(model: SAMCP, image: Tensor, patches: Instances) -> dict[str, Tensor]:
    """Return the inputs of :meth:`TensorNetwork.forward` for the model's current classes.

    Args:
        image: (3, H, W) in [0, 255], resized as for the model.
        patches: N patches with fields ``patch_boxes`` and ``roi_masks``.
    """
    side = model.backbone.size_divisibility
    height, width = (side * max(_MIN_CELLS, -(-size // side)) for size in image.shape[1:])
    batch = PatchBatch.from_instances([patches], model.roi_size, model.device)
    missing = max(0, _MIN_PATCHES - batch.valid.shape[1])
    padded = F.pad(image.to(model.device).float(), (0, width - image.shape[2], 0, height - image.shape[1]))
    return {
        "image": padded[None],
        "image_size": batch.image_sizes,
        "boxes": F.pad(batch.boxes, (0, 0, 0, missing)),
        "roi_masks": F.pad(batch.roi_masks, (0, 0, 0, 0, 0, missing)),
        "valid": F.pad(batch.valid, (0, missing)),
        "text": model.class_embedding(),
        "semantic_words": model.class_embedding.names[model.semantic_classes],
    }


@torch.no_grad()
def export_network(model: SAMCP) -> ExportedProgram:
    """Export the network of a model for one image of any size, any number of patches, words and semantic words.

    The numbers of words and of semantic words are fixed if the model has just one, or none.
    """
    side = model.backbone.size_divisibility
    patches = Instances((5 * side, 7 * side))
    patches.patch_boxes = Boxes(torch.tensor([[0.0, 0.0, 9.0, 6.0]] * 5, device=model.device))
    patches.roi_masks = torch.ones(5, model.roi_size, model.roi_size)
    inputs = network_inputs(model, torch.zeros(3, 5 * side, 7 * side), patches)
    rows, columns = Dim("rows", min=_MIN_CELLS), Dim("columns", min=_MIN_CELLS)
    num_patches = Dim("patches", min=_MIN_PATCHES)
    shapes = {
        "image": {2: side * rows, 3: side * columns},
        "image_size": None,
        "boxes": {1: num_patches},
        "roi_masks": {1: num_patches},
        "valid": {1: num_patches},
        "text": {0: Dim("words", min=2)} if len(inputs["text"]) > 1 else None,
        "semantic_words": {0: Dim("semantic", min=2)} if len(inputs["semantic_words"]) > 1 else None,
    }
    return torch.export.export(TensorNetwork(model).eval(), (), inputs, dynamic_shapes=shapes)


class _FPNMaps(nn.Module):
    """Detectron2's FPN for images whose sides are multiples of its `size_divisibility`.

    With this condition, the sizes of all maps are simple functions of the image's size, which the code of FPN and of
    timm's convolutions with "same" padding computes in a way that `torch.export` cannot follow.
    """

    def __init__(self, backbone: FPN | CLIPFPN, names: Sequence[str]) -> None:
        super().__init__()
        backbone = copy.deepcopy(backbone)
        self.bottom_up = backbone.bottom_up
        self.fpn = backbone.fpn if isinstance(backbone, CLIPFPN) else backbone
        self.names = list(names)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, Conv2dSame):
                    setattr(module, name, _FixedPadding(child))

    def forward(self, image: Tensor) -> list[Tensor]:
        fpn = self.fpn
        inputs = self.bottom_up(image)
        x: Tensor | None = None
        maps: list[Tensor] = []
        for name, lateral, output in zip(reversed(fpn.in_features), fpn.lateral_convs, fpn.output_convs, strict=True):
            x = lateral(inputs[name]) if x is None else lateral(inputs[name]) + _double(x)
            maps.insert(0, output(x))
        found = dict(zip(fpn.output_shape(), maps, strict=False))  # without the coarsest level, made from the last one
        return [found[name] for name in self.names]


class _FixedPadding(nn.Module):
    """timm's convolution with "same" padding, for inputs whose sides are multiples of its stride."""

    def __init__(self, convolution: Conv2dSame) -> None:
        super().__init__()
        self.convolution = convolution
        self.padding = []
        for size, stride in zip(reversed(convolution.kernel_size), reversed(convolution.stride), strict=True):
            total = max(size - stride, 0)
            self.padding += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        c = self.convolution
        return F.conv2d(F.pad(x, self.padding), c.weight, c.bias, c.stride, 0, 1, c.groups)


def _double(x: Tensor) -> Tensor:
    """Enlarge maps (B, C, H, W) to (B, C, 2H, 2W), by nearest neighbour."""
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(4, 5).flatten(2, 3)


class _LevelwiseEmbedding:
    """RoI embedding of boxes that pools each box from every level and selects its own level afterwards."""

    def __init__(self, roi_embedding: RoIEmbedding, levels: Sequence[Tensor]) -> None:
        self.roi_embedding = roi_embedding
        self.levels = levels

    def __call__(self, boxes: Tensor, masks: Tensor | None = None) -> Tensor:
        """Embed boxes (1, M, 4) as (1, M, D); masks are (1, M, S, S)."""
        pooler = self.roi_embedding.pooler
        level_of = assign_boxes_to_levels(
            [Boxes(boxes[0])],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        pooled = torch.zeros(())
        for i, (level, align) in enumerate(zip(self.levels, pooler.level_poolers, strict=True)):
            aligned = roi_align(level, [boxes[0]], align.output_size, align.scale, SAMPLES, aligned=True)
            pooled = torch.where((level_of == i)[:, None, None, None], aligned, pooled)
        if masks is not None:
            pooled = pooled * masks[0].unsqueeze(1)
        return self.roi_embedding.norm(self.roi_embedding.mlp(pooled.flatten(1))).unsqueeze(0)
