"""The trainer: in half precision on a GPU, in single precision if there is none."""

import math
from pathlib import Path

import pytest
import torch

from samcp.config import load_config
from samcp.trainer import Trainer
from tests.device import DEVICE
from tests.test_train_net import arguments
from tests.toy_datasets import panoptic_dataset


def test_trainer_changes_the_weights_and_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "build_writers", lambda _: [])  # TensorBoard is not part of the GPU check's bundle
    settings = {"MODEL__DEVICE": DEVICE, "SOLVER__AMP__ENABLED": DEVICE == "cuda"}
    (tmp_path / "run").mkdir()  # by default_setup in train_net.py
    with panoptic_dataset(tmp_path / "toy", "toy_train_net", count=4):
        # The scale of the loss starts so high that half precision may skip the first iterations.
        trainer = Trainer(load_config(arguments(tmp_path / "toy", tmp_path / "run", SOLVER__MAX_ITER=20, **settings)))
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.train()
    assert not all(map(torch.equal, before, trainer.model.parameters()))
    assert math.isfinite(trainer.storage.latest()["total_loss"][0])
    assert 0 <= trainer._last_eval_results["panoptic_seg"]["PQ"] <= 100
    assert (tmp_path / "run" / "model_final.pth").exists()
