"""Literal implementation of METHOD 2 to 5: loops over queries, heads and patches of one image, without padding.

Slow, but differentiable. It reads the parameters of the project's modules and calls none of their code.
Vectors are (D,) tensors; values per patch, query or class are lists.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

Vectors = list[Tensor]


@dataclass(frozen=True)
class Image:
    """Image size, patches (XYXY boxes in pixels and RoI masks) and feature levels by stride."""

    height: int
    width: int
    boxes: Tensor
    roi_masks: Tensor
    levels: dict[int, Tensor]

    def normalize(self, box: Tensor) -> Tensor:
        return box / torch.tensor([self.width, self.height, self.width, self.height])


@dataclass(frozen=True)
class Query:
    """Content, reference box (XYXY, normalised) and indices of the visible queries of a query."""

    content: Tensor
    box: Tensor
    visible: list[int]


@dataclass(frozen=True)
class Layer:
    """Output of a layer: vector, affinity logits, box and normalised affinities of every query."""

    queries: Vectors
    logits: list[Vectors]
    boxes: Vectors
    normalized: list[list[float]]


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    return module.weight @ x + module.bias


def mlp(module: nn.Sequential, x: Tensor) -> Tensor:
    return linear(module[2], linear(module[0], x).clamp(min=0))


def layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    centered = x - x.sum() / len(x)
    return centered / (centered.square().sum() / len(x) + 1e-5).sqrt() * module.weight + module.bias


def sine_embedding(value: Tensor, dim: int) -> Vectors:
    angles = [2 * math.pi * value / 10000 ** (i / (dim // 2)) for i in range(dim // 2)]
    return [a.sin() for a in angles] + [a.cos() for a in angles]


def embed_position(module: nn.Module, box: Tensor) -> Tensor:
    """Return the position embedding of a box (METHOD 2.5)."""
    x0, y0, x1, y1 = box
    dim = module.mlp[0].in_features // 4
    values = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    return mlp(module.mlp, torch.stack([channel for value in values for channel in sine_embedding(value, dim)]))


def roi_embedding(module: nn.Module, image: Image, box: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the RoI embedding of a box (METHOD 2.2 to 2.4); the level is that of "Feature pyramid networks", Eq. 1."""
    strides = sorted(image.levels)
    area = float((box[2] - box[0]) * (box[3] - box[1]))
    stride = 2 ** math.floor(4 + math.log2(math.sqrt(area) / 224))
    stride = min(max(stride, strides[0]), strides[-1])
    features = image.levels[stride]
    size = math.isqrt(module.mlp[0].in_features // len(features))
    roi = torch.cat([torch.zeros(1), box])[None]
    pooled = roi_align(features[None], roi, size, 1 / stride, 2, aligned=True)[0]
    if mask is not None:
        pooled = torch.stack([channel * mask for channel in pooled])
    return layer_norm(module.norm, mlp(module.mlp, pooled.reshape(-1)))


def attention(
    module: nn.Module,
    heads: int,
    x: Vectors,
    x_pos: Vectors,
    memory: Vectors,
    memory_pos: Vectors,
    visible: list[list[int]],
) -> Vectors:
    """Apply multi-head attention, residual and LayerNorm; ``visible`` lists indices into ``memory`` per query."""
    keys = [linear(module.k_proj, f + p).chunk(heads) for f, p in zip(memory, memory_pos, strict=True)]
    values = [linear(module.v_proj, f).chunk(heads) for f in memory]
    out = []
    for m, (content, position) in enumerate(zip(x, x_pos, strict=True)):
        parts = []
        for h, query in enumerate(linear(module.q_proj, content + position).chunk(heads)):
            weights = [(query @ keys[n][h] / math.sqrt(len(query))).exp() for n in visible[m]]
            weighted = [weight * values[n][h] for weight, n in zip(weights, visible[m], strict=True)]
            parts.append(torch.stack(weighted).sum(0) / torch.stack(weights).sum())
        out.append(layer_norm(module.norm, content + linear(module.out_proj, torch.cat(parts))))
    return out


def feed_forward(module: nn.Module, x: Vectors) -> Vectors:
    return [layer_norm(module.norm, v + mlp(module.mlp, v)) for v in x]


def encode(module: nn.Module, heads: int, image: Image, *, mask_roi: bool = True) -> tuple[Vectors, Vectors]:
    """Return the patches' features F and position embeddings P_F (METHOD 2)."""
    masks = image.roi_masks if mask_roi else [None] * len(image.boxes)
    x = [roi_embedding(module.roi_embedding, image, b, m) for b, m in zip(image.boxes, masks, strict=True)]
    positions = [embed_position(module.position, image.normalize(box)) for box in image.boxes]
    all_indices = [list(range(len(x)))] * len(x)
    for layer in module.layers:
        x = feed_forward(layer.ffn, attention(layer.self_attention, heads, x, positions, x, positions, all_indices))
    return x, positions


def make_queries(
    module: nn.Module,
    image: Image,
    features: Vectors,
    embeddings: Tensor,
    semantic_classes: Sequence[int],
    denoising: Sequence[tuple[int, Tensor, int]] = (),
    instance_queries: bool = True,
) -> list[Query]:
    """Return semantic, instance and denoising queries (METHOD 3); ``denoising`` has label, box and group of each."""

    def content(c: int) -> Tensor:
        return layer_norm(module.text_content[1], linear(module.text_content[0], embeddings[c]))

    def reference(c: int) -> Tensor:
        x, y, w, h = linear(module.text_box, embeddings[c]).sigmoid()
        return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])

    kinds = ["semantic"] * len(semantic_classes)
    kinds += ["instance"] * (len(features) * instance_queries) + ["denoising"] * len(denoising)
    contents = [content(c) for c in semantic_classes]
    boxes = [reference(c) for c in semantic_classes]
    if instance_queries:
        contents += features
        boxes += [image.normalize(box) for box in image.boxes]
    contents += [content(label) for label, _, _ in denoising]
    boxes += [box for _, box, _ in denoising]
    groups = [None] * (len(kinds) - len(denoising)) + [group for _, _, group in denoising]

    def is_seen(m: int, n: int) -> bool:
        if kinds[m] == "semantic":
            return n == m or kinds[n] == "instance"
        if kinds[m] == "instance":
            return kinds[n] == "instance"
        return kinds[n] != "denoising" or groups[m] == groups[n]

    all_indices = range(len(kinds))
    return [Query(contents[m], boxes[m], [n for n in all_indices if is_seen(m, n)]) for m in all_indices]


def affinity(module: nn.Module, heads: int, query: Tensor, patch: Tensor) -> Tensor:
    """Return the affinity logit of a query and a patch (METHOD 4, step 2); both include their positions."""
    q, k = query + mlp(module.query_ffn, query), patch + mlp(module.patch_ffn, patch)
    pairs = zip(q.chunk(heads), k.chunk(heads), strict=True)
    x = torch.stack([q @ k / math.sqrt(len(q)) for q, k in pairs])
    for mix in module.mix:
        x = linear(mix, x.clamp(min=0))
    return x[0] / module.log_scale.exp() + patch @ module.patch_bias + module.bias


def normalize(row: Vectors) -> list[float]:
    """Normalize a row of affinity logits (METHOD 4, step 4)."""
    values = [x.sigmoid().item() for x in row]
    if max(values) == min(values):
        return [1.0] * len(values)
    return [(v - min(values)) / (max(values) - min(values)) for v in values]


def decode(
    module: nn.Module,
    heads: int,
    image: Image,
    queries: list[Query],
    features: Vectors,
    positions: Vectors,
    roi: nn.Module,
    *,
    dca: str = "patch",
    dca_mask: bool = True,
    affinity_refinement: bool = True,
    query_enhancement: bool = True,
) -> list[Layer]:
    """Return the outputs of all decoder layers (METHOD 4); without patches, queries attend to one zero token."""
    pixels = [torch.tensor([0.0, 0.0, image.width, image.height]) for _ in queries]
    boxes = [query.box for query in queries]
    x = [query.content for query in queries]
    memory, memory_pos = (features, positions) if features else ([torch.zeros(len(x[0]))],) * 2
    in_box: Callable[[int, Tensor], bool] | None = None
    if dca == "image":
        memory, memory_pos, centers = image_tokens(image, module.level_embedding)

        def in_box(t: int, box: Tensor) -> bool:
            return bool((centers[t] >= box[:2]).all() and (centers[t] < box[2:]).all())

    out: list[Layer] = []
    for layer in module.layers:
        x_pos = [embed_position(module.position, box) for box in boxes]
        x = attention(layer.self_attention, heads, x, x_pos, x, x_pos, [query.visible for query in queries])
        logits = [
            [affinity(layer.affinity, heads, q + q_pos, f + p) for f, p in zip(features, positions, strict=True)]
            for q, q_pos in zip(x, x_pos, strict=True)
        ]
        if affinity_refinement and out:
            logits = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(logits, out[-1].logits, strict=True)]

        all_tokens = list(range(len(memory)))
        visible = [all_tokens for _ in queries]
        if dca_mask and out and in_box is not None:
            visible = [[t for t in all_tokens if in_box(t, box)] or all_tokens for box in pixels]
        elif dca_mask and out and features:
            visible = [[n for n, a in enumerate(row) if a >= 0.5] for row in out[-1].normalized]
        x = attention(layer.cross_attention, heads, x, x_pos, memory, memory_pos, visible)
        x = feed_forward(layer.ffn, x)

        normalized = [normalize(row) if row else [] for row in logits]
        pixels = [
            enclosing_box(image, [b for b, a in zip(image.boxes, row, strict=True) if a > 0.5]) for row in normalized
        ]
        boxes = [image.normalize(box) for box in pixels]
        if query_enhancement:
            x = [(query + roi_embedding(roi, image, box)) / 2 for query, box in zip(x, pixels, strict=True)]
        out.append(Layer([layer_norm(module.norm, v) for v in x], logits, boxes, normalized))
    return out


def enclosing_box(image: Image, boxes: Vectors) -> Tensor:
    """Return the box around boxes, or the whole image if there are none (METHOD 4, step 6)."""
    if not boxes:
        return torch.tensor([0.0, 0.0, image.width, image.height])
    corners = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    return torch.stack(corners)


def image_tokens(image: Image, level_embedding: Tensor) -> tuple[Vectors, Vectors, Vectors]:
    """Return features, position embeddings and centres (pixels) of all cells with a centre inside the image."""
    dim = level_embedding.shape[1]
    tokens, positions, centers = [], [], []
    for i, stride in enumerate(sorted(image.levels)):
        level = image.levels[stride]
        for row in range(level.shape[1]):
            for column in range(level.shape[2]):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                if x < image.width and y < image.height:
                    tokens.append(level[:, row, column])
                    relative = torch.tensor([x / image.width, y / image.height])
                    position = torch.stack(
                        sine_embedding(relative[0], dim // 2) + sine_embedding(relative[1], dim // 2)
                    )
                    positions.append(position + level_embedding[i])
                    centers.append(torch.tensor([x, y]))
    return tokens, positions, centers


def score(module: nn.Module, query: Tensor, embedding: Tensor) -> Tensor:
    """Return the score of a query and a class embedding (METHOD 5, Eq. 1)."""
    unit = embedding / embedding.square().sum().sqrt()
    q, e = linear(module.query_proj, query), linear(module.text_proj, 10 * unit)
    return q @ e / q.square().sum().sqrt() / module.log_scale.exp() + unit @ module.text_bias + module.bias
