"""Encoder, queries, decoder and classifier against a literal implementation of the method, in float64.

The batch is padded and the literal implementation is not, so the tests detect any influence of padding.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samcp.modeling.affinity_decoder import AffinityDecoder, DecoderOutput
from samcp.modeling.classifier import Classifier
from samcp.modeling.denoising import DenoisingQueries
from samcp.modeling.patch_encoder import PatchEncoder, RoIEmbedding, RoIEmbeddingCache
from samcp.modeling.queries import QueryBuilder, QuerySet
from tests.samcp.modeling import literal_network as literal
from tests.samcp.modeling.random_batch import CLASSES, DIM, ROI_SIZE, STRIDES, Batch, make_denoising

TEXT_DIM, HEADS = 6, 4
LAYERS = 3
EXACT = {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use float64 everywhere, also for positions, which are otherwise float32; this allows tolerances of 1e-9."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def randomize_parameters(module: nn.Module) -> None:
    """Set all parameters to random values, since some initial values are 0 and would hide errors."""
    for m in module.modules():
        for name, parameter in m.named_parameters(recurse=False):
            if parameter.ndim == 2:
                parameter.normal_(std=1.2 * parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(mean=float(isinstance(m, nn.LayerNorm) and name == "weight"), std=0.3)


class Network(nn.Module):
    """Network from the feature maps to the scores.

    Args:
        encoder: options of the patch encoder.
        decoder: options of the decoder.
        instance_queries: whether patches are queries.
    """

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        instance_queries: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"dim": DIM, "num_heads": HEADS, "ffn_dim": 24}
        roi = RoIEmbedding(strides=STRIDES, in_channels=DIM, dim=DIM, roi_size=ROI_SIZE, fc_dim=20)
        self.encoder = PatchEncoder(roi_embedding=roi, **sizes, **({"num_layers": 2} | (encoder or {})))
        self.builder = QueryBuilder(dim=DIM, text_dim=TEXT_DIM, instance_queries=instance_queries)
        self.decoder = AffinityDecoder(**sizes, strides=STRIDES, **({"num_layers": LAYERS} | (decoder or {})))
        self.classifier = Classifier(dim=DIM, text_dim=TEXT_DIM)
        self.embeddings = nn.Parameter(torch.randn(CLASSES, TEXT_DIM))
        randomize_parameters(self)
        nn.init.normal_(self.embeddings)


def run(
    network: Network, batch: Batch, semantic_classes: list[int], denoising: DenoisingQueries | None
) -> tuple[QuerySet, list[DecoderOutput]]:
    features, position = network.encoder(batch.levels, batch.patches)
    queries = network.builder(
        embeddings=network.embeddings,
        semantic_classes=torch.tensor(semantic_classes, dtype=torch.long),
        features=features,
        patches=batch.patches,
        denoising=denoising,
    )
    outputs = network.decoder(
        queries=queries,
        features=features,
        position=position,
        patches=batch.patches,
        levels=batch.levels,
        embed_boxes=RoIEmbeddingCache(network.encoder.roi_embedding, batch.levels),
    )
    return queries, outputs


def run_literal(
    network: Network,
    batch: Batch,
    i: int,
    semantic_classes: list[int],
    denoising: DenoisingQueries | None,
    instance_queries: bool = True,
    **switches: Any,
) -> tuple[list[literal.Query], list[literal.Layer]]:
    image = batch.image(i)
    features, positions = literal.encode(network.encoder, HEADS, image)
    copies = []
    if denoising is not None:
        slots = zip(denoising.labels[i], denoising.boxes[i], denoising.group, denoising.valid[i], strict=True)
        copies = [(int(label), box, int(group)) for label, box, group, valid in slots if valid]
    queries = literal.make_queries(
        network.builder, image, features, network.embeddings, semantic_classes, copies, instance_queries
    )
    roi = network.encoder.roi_embedding
    return queries, literal.decode(network.decoder, HEADS, image, queries, features, positions, roi, **switches)


def real_queries(queries: QuerySet, batch: Batch, i: int, denoising: DenoisingQueries | None) -> Tensor:
    """Return which queries of an image are not padding, (M,) bool."""
    parts = [torch.ones(queries.num_semantic, dtype=torch.bool)]
    if queries.num_instance:
        parts.append(batch.patches.valid[i])
    if denoising is not None:
        parts.append(denoising.valid[i])
    return torch.cat(parts)


def matrix(rows: list[list[Tensor]], width: int) -> Tensor:
    return torch.stack([value for row in rows for value in row]).view(-1, width) if width else torch.zeros(len(rows), 0)


def assert_affinities_cover_thresholds(layers: list[literal.Layer]) -> None:
    """Assert that affinities lie on both sides of 0.1, 0.5 and 0.9, so that a wrong threshold is detected."""
    values = torch.tensor([row for layer in layers for row in layer.normalized]).flatten()
    assert (values - 0.5).abs().min() > 1e-5
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.1)):
        assert ((values >= low) & (values < high)).float().mean() > 0.05


@pytest.mark.parametrize(
    "options", [{}, {"mask_roi": False}, {"num_layers": 0}, {"activation_checkpoint": True}], ids=str
)
def test_encoder(options: dict[str, Any]) -> None:
    encoder = Network(encoder=options).encoder
    batch = Batch(6, 3)
    features, position = encoder(batch.levels, batch.patches)
    for i, count in enumerate((6, 3)):
        expected = literal.encode(encoder, HEADS, batch.image(i), mask_roi=options.get("mask_roi", True))
        torch.testing.assert_close(features[i, :count], torch.stack(expected[0]), **EXACT)
        torch.testing.assert_close(position[i, :count], torch.stack(expected[1]), **EXACT)
    assert not features[1, 3:].any()
    assert not position[1, 3:].any()


def test_boxes_cover_several_levels() -> None:
    """Otherwise the tests could not detect a wrong FPN level."""
    boxes = Batch(6, 3).patches.boxes[0]
    sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    assert {int(level) for level in (4 + (sizes / 224).log2()).floor()} >= {2, 3, 4}


SWITCHES: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "no DCA": {"dca_mask": False},
    "no AR": {"affinity_refinement": False},
    "no QE": {"query_enhancement": False},
    "image features": {"dca": "image"},
    "image features, no DCA": {"dca": "image", "dca_mask": False},
    "nothing": {"dca_mask": False, "affinity_refinement": False, "query_enhancement": False},
}
DENOISING: dict[str, Any] = {
    "valid": [[True] * 6, [True, False, True, False, True, False]],
    "group": [0, 0, 1, 1, 1, 1],
}
QUERIES: dict[str, dict[str, Any]] = {
    "no denoising": {"denoising": None},
    "no semantic queries": {"semantic": []},
    "no instance queries": {"instance": False},
}


@pytest.mark.parametrize(
    ("switches", "kinds", "counts"),
    [
        *(pytest.param(options, {}, (6, 4), id=name) for name, options in SWITCHES.items()),
        *(pytest.param({}, kinds, (6, 4), id=name) for name, kinds in QUERIES.items()),
        pytest.param({}, {}, (4, 1), id="one patch"),
        pytest.param({}, {}, (4, 0), id="no patch"),
    ],
)
def test_decoder(switches: dict[str, Any], kinds: dict[str, Any], counts: tuple[int, int]) -> None:
    semantic_classes, instance_queries = kinds.get("semantic", [3, 1]), kinds.get("instance", True)
    network = Network(decoder=switches, instance_queries=instance_queries).eval()
    batch = Batch(*counts, shrink=7 if switches.get("dca") == "image" else 1)
    denoising = make_denoising(**DENOISING) if kinds.get("denoising", True) else None
    with torch.no_grad():
        queries, outputs = run(network, batch, semantic_classes, denoising)
        assert len(outputs) == LAYERS
        for i, count in enumerate(counts):
            own, layers = run_literal(network, batch, i, semantic_classes, denoising, instance_queries, **switches)
            if count == max(counts):
                assert_affinities_cover_thresholds(layers)
            rows = real_queries(queries, batch, i, denoising)
            torch.testing.assert_close(queries.content[i, rows], torch.stack([q.content for q in own]), **EXACT)
            torch.testing.assert_close(queries.boxes[i, rows], torch.stack([q.box for q in own]), **EXACT)
            for layer, output in zip(layers, outputs, strict=True):
                logits = output.affinity_logits[i, rows, :count]
                torch.testing.assert_close(logits, matrix(layer.logits, count), **EXACT)
                torch.testing.assert_close(output.boxes[i, rows], torch.stack(layer.boxes), **EXACT)
                torch.testing.assert_close(output.queries[i, rows], torch.stack(layer.queries), **EXACT)


def test_image_tokens_in_padding_are_masked() -> None:
    """Padding is masked even for a query with a box that contains no token centre."""
    network = Network(decoder={"dca": "image"}).eval()
    batch = Batch(2, 2, shrink=7)
    batch.patches.boxes[1] = torch.tensor([[17.0, 17.0, 17.5, 17.5], [30.5, 31.0, 31.0, 31.5]])
    with torch.no_grad():
        _, outputs = run(network, batch, [0], None)
        _, layers = run_literal(network, batch, 1, [0], None, dca="image")
    for layer, output in zip(layers, outputs, strict=True):
        torch.testing.assert_close(output.queries[1], torch.stack(layer.queries), **EXACT)


def test_classifier() -> None:
    network = Network()
    queries = torch.randn(2, 3, DIM)
    scores = network.classifier(queries, network.embeddings)
    for i in range(2):
        for m in range(3):
            for c in range(CLASSES):
                expected = literal.score(network.classifier, queries[i, m], network.embeddings[c])
                torch.testing.assert_close(scores[i, m, c], expected, **EXACT)


@pytest.mark.parametrize("options", [{}, {"activation_checkpoint": True}, {"dca": "image"}], ids=str)
def test_gradients(options: dict[str, Any]) -> None:
    """Compare the gradients of all layer outputs for every parameter and feature level."""
    network = Network(encoder={k: v for k, v in options.items() if k != "dca"}, decoder=options | {"num_layers": 2})
    batch = Batch(4, 3, shrink=7 if options.get("dca") == "image" else 1)
    for level in batch.levels:
        level.requires_grad_()
    denoising = make_denoising([[True, True, True], [True, False, True]], [0, 1, 1])
    weights = torch.randn(DIM + CLASSES)
    parameters = dict(network.named_parameters())

    queries, outputs = run(network, batch, [2, 4], denoising)
    total, expected = torch.zeros(()), torch.zeros(())
    for i in range(2):
        rows, valid = real_queries(queries, batch, i, denoising), batch.patches.valid[i]
        for output in outputs:
            scores = network.classifier(output.queries, network.embeddings)[i, rows]
            total = total + (torch.cat([output.queries[i, rows], scores], dim=-1) @ weights).sin().sum()
            total = total + output.affinity_logits[i, rows][:, valid].sigmoid().sum()
            assert not output.boxes.requires_grad
        for layer in run_literal(network, batch, i, [2, 4], denoising, dca=options.get("dca", "patch"))[1]:
            for query, row in zip(layer.queries, layer.logits, strict=True):
                scores = [literal.score(network.classifier, query, e) for e in network.embeddings]
                expected = expected + (torch.cat([query, torch.stack(scores)]) @ weights).sin()
                expected = expected + torch.stack(row).sigmoid().sum()

    torch.testing.assert_close(total, expected, **EXACT)
    sources = [*parameters.values(), *batch.levels]
    names = [*parameters, *(f"level of stride {stride}" for stride in STRIDES)]
    gradients = torch.autograd.grad(total, sources, materialize_grads=True)
    literal_gradients = torch.autograd.grad(expected, sources, materialize_grads=True)
    for name, gradient, other in zip(names, gradients, literal_gradients, strict=True):
        assert torch.allclose(gradient, other, **EXACT), name
    assert all(gradient.any() for gradient in gradients[: len(parameters)])
