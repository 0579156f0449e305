"""Whole network: invariances, options and empty inputs."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from proposal_cache import Patches
from samcp import SAMCP
from tests.samcp.modeling.conftest import spread_affinities


def raw_outputs(model: SAMCP, images: list[dict]) -> list[Any]:
    """Return the predictions of every image before inference."""
    kept: list[Any] = []
    model.inference = lambda predictions, patches: kept.append(predictions) or {}  # type: ignore[assignment]
    model.eval()
    with torch.no_grad():
        model(images)
    return kept


def test_losses_and_gradients(toy: Any, toy_model: SAMCP) -> None:
    losses = toy_model([toy.input(12, {0: [1, 2], 2: [5], 3: [0]}), toy.input(7, {4: [3]}, seed=5)])
    kinds = {"loss_cls": 3, "loss_mask_focal": 4, "loss_dice": 4}  # instance, semantic, denoising; self-affinity
    for term, count in kinds.items():
        assert sum(name.startswith(term) for name in losses) == count * 3, f"{term}: one per kind of query and layer"
    assert len(losses) == sum(kinds.values()) * 3
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values()), losses
    sum(losses.values()).backward()
    without_gradient = [n for n, p in toy_model.named_parameters() if p.requires_grad and p.grad is None]
    assert without_gradient == [], "DistributedDataParallel requires a gradient for every parameter"


@pytest.mark.parametrize(
    "images",
    [[(0, {})], [(0, {}), (5, {})], [(5, {0: [1]}), (0, {})], [(1, {0: [0], 3: [0]})]],
    ids=["no patches", "no entities", "one empty image", "one patch"],
)
def test_empty_images_train_and_predict(toy: Any, toy_model: SAMCP, images: list[tuple[int, dict]]) -> None:
    batch = [toy.input(n, groups) for n, groups in images]
    losses = toy_model(batch)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None for p in toy_model.parameters() if p.requires_grad)
    toy_model.eval()
    with torch.no_grad():
        results = toy_model(batch)
    for (num, _), result in zip(images, results, strict=True):
        if num == 0:
            assert len(result["instances"]) == 0
            assert (result["sem_seg"] == -1).all()


def test_image_without_patches_has_no_loss(toy: Any, toy_model: SAMCP) -> None:
    assert sum(toy_model([toy.input(0, {})]).values()) == 0


@pytest.mark.parametrize("other", [(64, 96), (128, 160), (32, 160)], ids=str)
@pytest.mark.parametrize("dca", ["patch", "image"])
def test_predictions_are_independent_of_padding(toy: Any, toy_cfg: CfgNode, other: tuple[int, int], dca: str) -> None:
    """Predictions for an image do not depend on the other image in the batch."""
    toy_cfg.MODEL.SAMCP.DCA = dca
    toy_model = spread_affinities(build_model(toy_cfg))
    small, large = toy.input(4, {}), toy.input(11, {}, seed=7, size=other)
    alone, together = raw_outputs(toy_model, [small])[0], raw_outputs(toy_model, [small, large])[0]
    for name, value in vars(alone).items():
        assert torch.allclose(value, getattr(together, name), atol=1e-5), name


def test_permutation_equivariance(toy: Any, toy_model: SAMCP) -> None:
    image = toy.input(9, {})
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = dict(image, patches=image["patches"][order], patch_rles=image["patch_rles"].select(order.numpy()))
    first, second = raw_outputs(toy_model, [image])[0], raw_outputs(toy_model, [shuffled])[0]
    assert first.semantic_affinity.std() > 1e-4, "affinities must differ between patches"
    assert torch.allclose(first.semantic_scores, second.semantic_scores, atol=1e-5)
    assert torch.allclose(first.semantic_affinity[:, order], second.semantic_affinity, atol=1e-5)
    assert torch.allclose(first.instance_scores[order], second.instance_scores, atol=1e-5)
    assert torch.allclose(first.instance_affinity[order][:, order], second.instance_affinity, atol=1e-5)


def test_losses_are_reproducible(toy: Any, toy_cfg: CfgNode) -> None:
    def run() -> list[float]:
        torch.manual_seed(3)
        return [float(v) for v in build_model(toy_cfg)([toy.input(6, {0: [1], 3: [2]})]).values()]

    assert run() == run()


SWITCHES = [
    ("DCA", "image"),
    ("DCA_MASK", False),
    ("AFFINITY_REFINEMENT", False),
    ("MASK_ROI", False),
    ("QUERY_ENHANCEMENT", False),
    ("SELF_AFFINITY", False),
    ("ENC_LAYERS", 0),
    ("SEMANTIC_QUERIES", "all"),
    ("DENOISING.ENABLED", False),
    ("LOSS.MASK_FOCAL", 0.0),
    ("LOSS.DICE", 0.0),
    ("LOSS.SELF_AFFINITY", 0.5),
    ("LOSS.THINGS_ONLY", False),
]


@pytest.mark.parametrize(("key", "value"), SWITCHES, ids=[f"{k}={v}" for k, v in SWITCHES])
def test_each_option_changes_the_losses(toy: Any, toy_cfg: CfgNode, key: str, value: Any) -> None:
    """Each option is switched by config alone, and the model still trains."""

    def losses(cfg: CfgNode) -> dict[str, float]:
        torch.manual_seed(0)
        model = build_model(cfg)
        torch.manual_seed(1)
        result = model([toy.input(10, {0: [1, 2], 1: [3], 3: [5, 6]}), toy.input(6, {2: [0, 1]}, seed=2)])
        sum(result.values()).backward()
        return {k: float(v.detach()) for k, v in result.items()}

    before = losses(toy_cfg)
    toy_cfg.merge_from_list([f"MODEL.SAMCP.{key}", value])
    after = losses(toy_cfg)
    assert all(torch.isfinite(torch.tensor(v)) for v in after.values())
    assert before != after


def test_activation_checkpointing_keeps_gradients(toy: Any, toy_cfg: CfgNode) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        toy_cfg.MODEL.SAMCP.ACTIVATION_CHECKPOINT = checkpointing
        torch.manual_seed(0)
        model = build_model(toy_cfg)
        torch.manual_seed(1)
        sum(model([toy.input(8, {0: [1, 2], 3: [5]})]).values()).backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5)


def test_oracle(toy: Any, toy_model: SAMCP) -> None:
    image = toy.input(6, {1: [2], 3: [0, 4]})
    toy_model.oracle = True
    result = toy_model.eval()([image])[0]
    union = image["patch_rles"].decode([2])[0]
    assert result["instances"].pred_classes.tolist() == [1]
    assert result["instances"].scores.tolist() == [1.0]
    assert (result["instances"].pred_masks.tensor[0].numpy() == union).all()
    assert {s["category_id"] for s in result["panoptic_seg"][1]} <= {1, 3}


def test_without_instance_queries(toy: Any, toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.SAMCP.INSTANCE_QUERIES = False
    toy_cfg.MODEL.SAMCP.SEMANTIC_QUERIES = "all"
    toy_cfg.MODEL.SAMCP.TEST.SEMANTIC_THRESHOLD = 0.0  # scores of an untrained model are near the default threshold
    model = build_model(toy_cfg)
    losses = model([toy.input(6, {0: [1], 3: [2]})])
    assert not any("_dn" in name for name in losses)
    model.inference.semantic_threshold = 0.0  # scores of random weights are low
    with torch.no_grad():
        result = model.eval()([toy.input(6, {})])[0]
    assert len(result["instances"]) == 0
    assert (result["sem_seg"] >= 0).any()


def test_rejects_wrong_roi_size(toy_model: SAMCP) -> None:
    patches = Instances((32, 32))
    patches.patch_boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
    patches.roi_masks = torch.ones(1, 14, 14)
    image = {
        "image": torch.zeros(3, 32, 32, dtype=torch.uint8),
        "patches": patches,
        "patch_rles": Patches.empty(32, 32),
    }
    with pytest.raises(ValueError, match="the same roi_size"):
        toy_model.eval()([image])
