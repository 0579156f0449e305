"""Class embeddings of a small open_clip model that is made, saved and loaded here."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from samcp.modeling.text_encoder import CLIPClassEmbedding, LearnedClassEmbedding, embed_names

PROMPTS = ["a photo of a {}.", "there is a {} in the scene."]


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name and checkpoint of an open_clip model of a few thousand weights."""
    folder = tmp_path_factory.mktemp("clip")
    tower = {"layers": 1, "width": 32}
    config = {
        "embed_dim": 24,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    (folder / "samcp_tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    weights = folder / "tiny.pt"
    torch.save(open_clip.create_model("samcp_tiny").state_dict(), weights)
    return "samcp_tiny", weights


def test_embeddings_are_open_clips_own(tiny_clip: tuple[str, Path]) -> None:
    name, weights = tiny_clip
    embedding = CLIPClassEmbedding(["kite", "sea"], name=name, pretrained=str(weights), prompts=PROMPTS)()
    model = open_clip.create_model(name, pretrained=str(weights)).eval()
    tokenizer = open_clip.get_tokenizer(name)
    with torch.no_grad():
        both = F.normalize(model.encode_text(tokenizer([p.format("sea") for p in PROMPTS])), dim=-1)
    assert torch.allclose(embedding[1], F.normalize(both.mean(0), dim=-1), atol=1e-6)
    assert not torch.allclose(embedding[0], embedding[1], atol=1e-2)


def test_model_with_text_keeps_no_vocabulary_in_its_state(toy_cfg: CfgNode, tiny_clip: tuple[str, Path]) -> None:
    """So a checkpoint loads whatever words are asked for."""
    name, weights = tiny_clip
    text = toy_cfg.MODEL.SAMCP.TEXT
    text.ENCODER, text.NAME, text.PRETRAINED = "clip", name, str(weights)
    model = build_model(toy_cfg)
    assert model.class_embedding().shape == (5, 24)
    assert not any("class_embedding" in key for key in model.state_dict())


def test_learned_table_is_trained() -> None:
    table = LearnedClassEmbedding(["kite", "sea"], 8)
    assert table().shape == (2, 8)
    assert table().requires_grad


def test_missing_weights_are_named(tiny_clip: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"TEXT.PRETRAINED.*absent.pt"):
        embed_names(["kite"], tiny_clip[0], str(tmp_path / "absent.pt"), PROMPTS)


def test_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"TEXT.NAME.*no_such_clip"):
        embed_names(["kite"], "no_such_clip", "", PROMPTS)
