"""CLIP scores of predicted masks and their fusion with learned scores, against literal implementations."""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from proposal_cache import Patches
from samcp import SAMCP
from samcp.modeling.backbone.clip import DENSE
from samcp.modeling.inference import Predictions
from samcp.modeling.open_vocabulary import ClipScores, ScoreFusion, mask_weights
from samcp.vocabulary import Vocabulary
from tests.tiny_clip import make_tiny_clip


def predictions(num_classes: int = 3) -> tuple[Predictions, ClipScores]:
    torch.manual_seed(0)
    learned_predictions = Predictions(
        torch.tensor([2, 0]), torch.rand(2), torch.rand(2, 4), torch.rand(4, num_classes), torch.rand(4, 4)
    )
    return learned_predictions, ClipScores(torch.rand(2), torch.rand(4, num_classes).softmax(-1))


@pytest.mark.parametrize("rule", ["product", "sum"])
def test_fusion(rule: str) -> None:
    learned_predictions, clip = predictions()
    seen = torch.tensor([True, False, True])
    fused = ScoreFusion(clip_weight=0.4, clip_weight_unseen=0.7, rule=rule)(learned_predictions, clip, seen)

    def expected(learned: float, other: float, c: int) -> float:
        k = 0.4 if seen[c] else 0.7
        a, b = learned ** (1 - k), other**k
        return a * b if rule == "product" else (a + b) / 2

    for i in range(4):
        for c in range(3):
            value = expected(float(learned_predictions.instance_scores[i, c]), float(clip.instance[i, c]), c)
            assert fused.instance_scores[i, c] == pytest.approx(value, rel=1e-5)
    for i, c in enumerate([2, 0]):
        value = expected(float(learned_predictions.semantic_scores[i]), float(clip.semantic[i]), c)
        assert fused.semantic_scores[i] == pytest.approx(value, rel=1e-5)
    assert torch.equal(fused.instance_affinity, learned_predictions.instance_affinity)


def test_clip_weight_of_0_and_1_select_one_classifier() -> None:
    """Weights of the single-classifier rows of Table 6."""
    learned_predictions, clip = predictions()
    seen = torch.ones(3, dtype=torch.bool)
    learned = ScoreFusion(clip_weight=0, clip_weight_unseen=0, rule="product")(learned_predictions, clip, seen)
    clips = ScoreFusion(clip_weight=1, clip_weight_unseen=1, rule="product")(learned_predictions, clip, seen)
    assert torch.allclose(learned.instance_scores, learned_predictions.instance_scores)
    assert torch.allclose(clips.instance_scores, clip.instance)


@pytest.mark.parametrize("keys", [{"clip_weight": 1.5}, {"clip_weight_unseen": -0.1}, {"rule": "mean"}])
def test_rejects_invalid_options(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(keys))} is"):
        ScoreFusion(**{"clip_weight": 0.4, "clip_weight_unseen": 0.4, "rule": "product", **keys})


@pytest.mark.parametrize("size", [(20, 30), (40, 60), (33, 50)])
def test_mask_weights(toy: Any, size: tuple[int, int]) -> None:
    patches = toy.patches(6, 20, 30)
    members = torch.rand(5, 6) > 0.6
    members[0] = False
    weights = mask_weights(members, patches, (size[0] / 8, size[1] / 8))
    assert weights.shape == (5, -(-size[0] // 8), -(-size[1] // 8))
    masks = patches.decode()
    expected = np.zeros(weights.shape)
    for q in range(5):
        union = masks[members[q].numpy()].any(0)
        for y, x in zip(*np.nonzero(union), strict=True):
            row, column = (y + 0.5) * size[0] / 20 // 8, (x + 0.5) * size[1] / 30 // 8
            expected[q, int(row), int(column)] += 1
    assert np.array_equal(weights.numpy(), expected)
    assert weights.sum() > 0


def test_mask_weights_without_patches() -> None:
    assert mask_weights(torch.zeros(3, 0, dtype=torch.bool), Patches.empty(9, 9), (9 / 4, 9 / 4)).shape == (3, 3, 3)


@pytest.fixture(scope="module", params=["convnext", "resnet"])
def clip_cfg(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name, weights = make_tiny_clip(tmp_path_factory.mktemp("clip"), request.param)

    def configure(cfg: CfgNode) -> CfgNode:
        cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED = name, weights
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SAMCP.TEXT.ENCODER = "build_clip_fpn_backbone", "clip"
        cfg.MODEL.SAMCP.OPEN_VOCABULARY.ENABLED = True
        return cfg

    return configure


@pytest.fixture
def model(clip_cfg: Any, toy_cfg: CfgNode) -> SAMCP:
    torch.manual_seed(0)
    model = SAMCP(clip_cfg(toy_cfg)).eval()
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.affinity.patch_bias.normal_(std=0.3)
    return model


@torch.no_grad()
def test_predict_names_by_clip(model: SAMCP, toy: Any) -> None:
    model.set_vocabulary(Vocabulary(("disc", "kite", "sky"), (True, True, False), (("circle",), (), ("heaven", "air"))))
    inputs = [toy.input(8, {}, size=(64, 96)), toy.input(5, {}, size=(64, 96), seed=4)]
    images = model.encode(inputs)
    learned_predictions = model.predict_learned(images)
    rles = [x["patch_rles"] for x in inputs]
    for i, (predictions, clip) in enumerate(model.predict_names(images, learned_predictions, rles)):
        assert predictions is learned_predictions[i]
        one = model.encode(inputs[i : i + 1])
        [(_, alone)] = model.predict_names(one, learned_predictions[i : i + 1], rles[i : i + 1])
        assert torch.allclose(clip.instance, alone.instance, atol=1e-5), "scores must not depend on the batch"
        height, width = inputs[i]["image"].shape[1:]
        dense = images.features[DENSE][i, :, : -(-height // 32), : -(-width // 32)]
        words = model.class_embedding()
        for affinity, row in zip(learned_predictions[i].instance_affinity, clip.instance, strict=True):
            members = (affinity - affinity.min()) / (affinity.max() - affinity.min()) > 0.5
            weights = mask_weights(members[None], rles[i], (height / 32, width / 32))
            [pooled] = model.backbone.bottom_up.pool(dense, weights)
            logits = [float(pooled @ word) * float(model.backbone.bottom_up.logit_scale) for word in words]
            best = torch.tensor([max(logits[:2]), logits[2], max(logits[3:])])
            assert torch.allclose(row, best.softmax(0), atol=1e-4)
        assert clip.semantic.shape == (1,)


@torch.no_grad()
def test_model_returns_fused_scores(model: SAMCP, toy: Any) -> None:
    inputs = [toy.input(8, {})]
    images, rles = model.encode(inputs), [inputs[0]["patch_rles"]]
    [learned] = model.predict_learned(images)
    [(_, clip)] = model.predict_names(images, [learned], rles)
    [fused] = model.predict(images, rles)
    assert torch.allclose(fused.instance_scores, learned.instance_scores**0.6 * clip.instance**0.4)
    expected = model.inference(fused, rles[0])
    [result] = model(inputs)
    assert torch.equal(result["sem_seg"], expected["sem_seg"])
    assert torch.equal(result["instances"].scores, expected["instances"].scores)


def test_seen_classes_include_synonyms(model: SAMCP) -> None:
    """The toy model is trained on disc, square, ring, sky and grass."""
    model.set_vocabulary(Vocabulary(("round", "kite", "Sky"), (True, True, False), (("ring",), (), ())))
    assert model.seen_classes.tolist() == [True, False, True]


def test_clip_is_frozen_in_training(model: SAMCP, toy: Any) -> None:
    losses = model.train()([toy.input(8, {0: [1, 2], 3: [5]})])
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.backbone.bottom_up.parameters())
    assert all(p.grad is not None for p in model.classifier.parameters())


@torch.no_grad()
def test_image_without_patches(model: SAMCP, toy: Any) -> None:
    [result] = model([toy.input(0, {})])
    assert (result["sem_seg"] == -1).all()
    assert len(result["instances"]) == 0


def test_fusion_requires_clip(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.SAMCP.OPEN_VOCABULARY.ENABLED = True
    with pytest.raises(ValueError, match=r"OPEN_VOCABULARY.ENABLED needs CLIP for images and for words"):
        SAMCP(toy_cfg)
