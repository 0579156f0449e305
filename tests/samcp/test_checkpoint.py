"""Loading and saving of checkpoints, and errors for invalid ones."""

import functools
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from samcp import add_samcp_config
from samcp.checkpoint import Checkpointer
from samcp.errors import CheckpointError
from samcp.vocabulary import Vocabulary


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def model(width=3, classes=None):
    layers = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    if classes:
        layers.vocabulary = Vocabulary.parse(classes)
    return layers


def test_round_trip_with_config(cfg, tmp_path):
    cfg.MODEL.SAMCP.HIDDEN_DIM = 48
    saved, loaded = model(), model()
    Checkpointer(saved, cfg).save("model_final")
    path = str(tmp_path / "model_final.pth")
    Checkpointer(loaded, cfg).load(path)
    assert torch.equal(saved[0].weight, loaded[0].weight)
    restored = get_cfg()
    add_samcp_config(restored)
    restored.merge_from_other_cfg(cfg.load_cfg(torch.load(path, weights_only=True)["config"]["yaml"]))
    assert restored.MODEL.SAMCP.HIDDEN_DIM == 48


def test_partial_weights_can_only_initialize(cfg, tmp_path):
    path = str(tmp_path / "part.pth")
    torch.save({"model": {"0.weight": torch.ones(3, 2)}}, path)
    initialized = model()
    Checkpointer(initialized, cfg).resume_or_load(path, resume=False)
    assert (initialized[0].weight == 1).all()
    with pytest.raises(CheckpointError, match=r"part.pth: not a checkpoint of this config's model: 3 tensors missing"):
        Checkpointer(model(), cfg).load(path)


def test_rejects_other_shapes(cfg, tmp_path):
    Checkpointer(model(width=5), cfg).save("wide")
    with pytest.raises(CheckpointError, match=r"wide.pth.*3 tensors of another shape \(0.weight, 0.bias, 1.weight\)"):
        Checkpointer(model(), cfg).load(str(tmp_path / "wide.pth"))


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        ("sea~, kite", r"class 1 was 'kite' \(thing\) of 2 and is 'sea' \(stuff\) of 2"),
        ("kite, sea", r"class 2 was 'sea' \(stuff\) of 2 and is 'sea' \(thing\) of 2"),
        ("kite, sea~, boat", r"class 3 was none of 2 and is 'boat' \(thing\) of 3"),
        ("kite", r"class 2 was 'sea' \(stuff\) of 2 and is none of 1"),
    ],
)
def test_other_classes_can_only_initialize(cfg, classes, difference):
    trained = model(classes="kite: dragon, sea~")
    Checkpointer(trained, cfg).save("last")
    message = rf"last.pth: trained on other classes .*: {difference}; resume with .*MODEL.WEIGHTS"
    with pytest.raises(CheckpointError, match=message):
        Checkpointer(model(classes=classes), cfg).resume_or_load("", resume=True)
    initialized = model(classes=classes)
    Checkpointer(initialized, cfg).resume_or_load(f"{cfg.OUTPUT_DIR}/last.pth", resume=False)
    assert torch.equal(initialized[0].weight, trained[0].weight)


@pytest.mark.parametrize("classes", ["kite, sea~: ocean | water", None])
def test_resume_with_other_synonyms_or_unknown_classes(cfg, classes):
    trained, resumed = model(classes="kite: dragon, sea~"), model(classes=classes)
    Checkpointer(trained, cfg).save("last")
    Checkpointer(resumed, cfg).resume_or_load("", resume=True)
    assert torch.equal(resumed[0].weight, trained[0].weight)


@pytest.mark.parametrize(
    "text", ["7", "{}", "[" * 9999, '{"names": [1], "is_thing": [true]}', '{"names": "a", "size": 1}']
)
def test_odd_vocabulary(cfg, tmp_path, text):
    state = {"model": model().state_dict(), "config": {"vocabulary": text}}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd.pth: not a checkpoint, or damaged \(its vocabulary is damaged"):
        Checkpointer(model(classes="kite"), cfg).load(str(tmp_path / "odd.pth"))


def test_rejects_unrelated_model(cfg, tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save({"model": {"conv.weight": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match=r"other.pth: has no tensor"):
        Checkpointer(model(), cfg).resume_or_load(path, resume=False)


@pytest.mark.parametrize("content", [b"", b"this is no checkpoint", b"PK\x03\x04 nor this"])
def test_rejects_other_files(cfg, tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken.pth: not a checkpoint"):
        Checkpointer(model(), cfg).load(str(path))


def test_missing_file(cfg, tmp_path):
    with pytest.raises(CheckpointError, match=r"gone.pth: not found"):
        Checkpointer(model(), cfg).load(str(tmp_path / "gone.pth"))


def test_loading_runs_no_code(cfg, tmp_path, monkeypatch):
    """A pickle that would create a file is rejected in the formats of PyTorch, pycls and Detectron2."""
    monkeypatch.setattr(torch, "load", functools.partial(torch.load, weights_only=False))  # PyTorch 2.5's default
    victim = tmp_path / "victim"

    class Evil:
        def __reduce__(self):
            return (open, (str(victim), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    torch.save({"model_state": Evil()}, tmp_path / "evil.pyth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Evil(), "__author__": "me"}))
    for name in ("evil.pth", "evil.pyth", "evil.pkl"):
        with pytest.raises(CheckpointError, match=rf"{name}: not a checkpoint"):
            Checkpointer(model(), cfg).load(str(tmp_path / name))
        assert not victim.exists()


def test_load_detectron2_pickle(cfg, tmp_path):
    weights = {"0.weight": np.ones((3, 2), dtype=np.float32), "1.bias": np.array([5.0], dtype=np.float32)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "torchvision"}, protocol=2))
    loaded = model()
    Checkpointer(loaded, cfg).resume_or_load(str(path), resume=False)
    assert (loaded[0].weight == 1).all()
    assert loaded[1].bias == 5


def test_load_pycls_checkpoint(cfg, tmp_path):
    path = str(tmp_path / "regnet.pyth")
    torch.save({"model_state": {"0.weight": torch.ones(3, 2), "0.num_batches_tracked": torch.ones(1)}}, path)
    loaded = model()
    Checkpointer(loaded, cfg).resume_or_load(path, resume=False)
    assert (loaded[0].weight == 1).all()
