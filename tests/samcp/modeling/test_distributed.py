"""Gradients of two processes with half of the batch each equal those of one process."""

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from samcp import SAMCP
from samcp.trainer import _distributed
from samcp.vocabulary import Vocabulary
from tests.processes import run_in_two_processes


def build(cfg: CfgNode) -> SAMCP:
    torch.manual_seed(0)
    model = SAMCP(cfg, vocabulary=Vocabulary(("disc", "square", "ring", "sky", "grass"), (True,) * 3 + (False,) * 2))
    with torch.no_grad():  # affinities far apart, so that rounding does not change the attention masks
        for layer in model.decoder.layers:
            layer.affinity.patch_bias.normal_(std=0.2)
    return model


def gradients(model: torch.nn.Module, batch: list[dict]) -> dict[str, Tensor]:
    model.zero_grad()
    sum(model(batch).values()).backward()
    named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: gradient.clone() for name, gradient in named.items() if gradient is not None}


def work(rank: int, folder: Path, cfg: CfgNode, batches: list[list[dict]]) -> None:
    """Compute the gradients for image `rank` of each batch."""
    model = _distributed(build(cfg))
    torch.save([gradients(model, [batch[rank]]) for batch in batches], folder / f"{rank}.pt")


def test_gradients_of_two_processes_equal_one_process(toy: Any, toy_cfg: CfgNode, tmp_path: Path) -> None:
    toy_cfg.MODEL.SAMCP.DENOISING.ENABLED = False  # its noise differs between processes
    batches = [
        [toy.input(12, {0: [1, 2], 1: [7], 3: [5]}), toy.input(7, {2: [0]}, seed=2)],
        [toy.input(9, {0: [1, 2]}, seed=3), toy.input(6, {}, seed=4)],  # the second image has no entities
        [toy.input(0, {}, seed=5), toy.input(6, {1: [3]}, seed=6)],  # the first image has no patches
    ]
    run_in_two_processes(work, tmp_path, toy_cfg, batches)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    model = build(toy_cfg)
    for batch, ours, theirs in zip(batches, first, second, strict=True):
        alone = gradients(model, batch)
        assert alone.keys() <= ours.keys()
        for name, gradient in ours.items():
            assert torch.equal(gradient, theirs[name]), name
            expected = alone.get(name, torch.zeros_like(gradient))
            assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-5), name
