"""A checkpoint becomes a file to hand on, which evaluates as the checkpoint did."""

import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from torch import nn

from samcp import add_samcp_config
from samcp.checkpoint import Checkpointer, CheckpointError
from samcp.data.vocabulary import Vocabulary
from samcp.model_file import ModelFile, parse_config

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import convert_checkpoint


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    MetadataCatalog.get("convert_toy").set(stuff_classes=["kite", "sea"], thing_dataset_id_to_contiguous_id={7: 0})
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.OUTPUT_DIR, cfg.DATASETS.TRAIN, cfg.MODEL.SAMCP.HIDDEN_DIM = str(tmp_path), ("convert_toy",), 48
    return cfg


@pytest.fixture
def checkpoint(cfg: CfgNode, tmp_path: Path) -> Path:
    model = nn.Linear(300, 200)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    Checkpointer(model, cfg, optimizer=optimizer).save("model_final", iteration=3)
    return tmp_path / "model_final.pth"


def test_keeps_weights_config_and_vocabulary_and_drops_the_rest(
    cfg: CfgNode, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = checkpoint.parent / "handed_on" / "model.safetensors"
    convert_checkpoint.convert(checkpoint, target)
    assert "2 classes, 1 of them things: kite, sea" in capsys.readouterr().out
    assert target.stat().st_size < checkpoint.stat().st_size / 2.5  # two moments of AdamW are gone
    assert [file.name for file in target.parent.iterdir()] == ["model.safetensors"]

    model = ModelFile.load(target)
    assert model.vocabulary == Vocabulary(("kite", "sea"), (True, False))
    assert parse_config(model.config).MODEL.SAMCP.HIDDEN_DIM == 48
    loaded = nn.Linear(300, 200)
    Checkpointer(loaded, cfg).load(str(target))
    weights = torch.load(checkpoint, weights_only=True)["model"]
    assert torch.equal(loaded.weight, weights["weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such"),
        (b"nonsense", "is not a checkpoint of this project"),
        ({"weight": torch.ones(2)}, "is not a checkpoint of this project"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"model\.pth: {message}"):
        ModelFile.of_checkpoint(path)


def test_what_is_no_model_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match=r"model\.pt: a model file is called \*\.safetensors"):
        ModelFile.of_checkpoint(checkpoint).save(tmp_path / "model.pt")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(1)}, foreign)
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: has no samcp\.config and samcp\.vocabulary"):
        ModelFile.load(foreign)
    foreign.write_bytes(foreign.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: is no safetensors file, or a damaged one"):
        ModelFile.load(foreign)


def test_config_of_another_version(checkpoint: Path) -> None:
    text = ModelFile.of_checkpoint(checkpoint).config
    with pytest.raises(CheckpointError, match=r"does not fit this version .*MODEL.SAMCP.GONE"):
        parse_config(text.replace("HIDDEN_DIM: 48", "HIDDEN_DIM: 48\n    GONE: 1"))
