"""Warnings of the trainer, and its BatchNorm layers in several processes."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from detectron2.config import get_cfg
from timm.layers import BatchNormAct2d
from torch import nn

from samcp import add_samcp_config, trainer
from samcp.errors import UsageError
from samcp.trainer import Trainer
from samcp.vocabulary import Vocabulary


@pytest.mark.parametrize(("classes", "queries", "warned"), [("sea~", True, 1), ("sea~", False, 0), ("kite", True, 0)])
def test_warning_about_unused_instance_queries(classes, queries, warned, caplog):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.MODEL.SAMCP.INSTANCE_QUERIES = queries
    model = nn.Identity()
    model.vocabulary = Vocabulary.parse(classes)
    trainer._warn_about_unused_instance_queries(cfg, model)
    assert sum("no thing classes" in message for message in caplog.messages) == warned


def test_synchronized_layers_keep_their_activation():
    layers = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3)).eval()
    images = torch.randn(2, 3, 4, 4)
    expected = layers(images)
    synchronized = trainer.convert_sync_batchnorm(layers)
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in synchronized)
    assert torch.equal(synchronized(images), expected)
    assert expected.min() == 0, "of the ReLU"


def test_machines_without_a_common_folder_do_not_train(monkeypatch):
    """One machine finds a checkpoint in its own OUTPUT_DIR, and another does not."""
    one = Trainer.__new__(Trainer)
    one.cfg = get_cfg()
    one.checkpointer, one.start_iter = Mock(has_checkpoint=lambda: False), 0
    one._batches = SimpleNamespace(seed=3, start=0)
    one.resume_or_load()
    monkeypatch.setattr(trainer.comm, "all_gather", lambda mine: [mine, (500, 3)])
    with pytest.raises(UsageError, match=r"start at different iterations \(\[0, 500\]\): OUTPUT_DIR, .*share"):
        one.resume_or_load()
