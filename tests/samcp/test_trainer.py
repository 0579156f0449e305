"""Warnings of the trainer."""

import pytest
import torch
from detectron2.config import get_cfg

from samcp import add_samcp_config, trainer
from samcp.vocabulary import Vocabulary


@pytest.mark.parametrize(("classes", "queries", "warned"), [("sea~", True, 1), ("sea~", False, 0), ("kite", True, 0)])
def test_warning_about_unused_instance_queries(classes, queries, warned, caplog):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.MODEL.SAMCP.INSTANCE_QUERIES = queries
    model = torch.nn.Identity()
    model.vocabulary = Vocabulary.parse(classes)
    trainer._warn_about_unused_instance_queries(cfg, model)
    assert sum("no thing classes" in message for message in caplog.messages) == warned
