"""scripts/convert_checkpoint.py: export of checkpoints, and conversion of released ones."""

import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from torch import nn

import samcp.cli
from samcp import SAMCP, add_samcp_config
from samcp.checkpoint import Checkpointer
from samcp.commands.export import export
from samcp.config import parse_config
from samcp.errors import CheckpointError
from samcp.export import ModelFile
from samcp.vocabulary import Vocabulary

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import convert_checkpoint

CONFIG = Path(__file__).parents[2] / "configs" / "coco" / "panoptic" / "samcp_R50_12ep.yaml"


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


def test_export_contains_weights_config_and_vocabulary_only(
    cfg: CfgNode, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = checkpoint.parent / "exported" / "model.safetensors"
    export(str(checkpoint), target)
    assert "2 classes, 1 of them things: kite, sea" in capsys.readouterr().out
    assert target.stat().st_size < checkpoint.stat().st_size / 2.5  # without the two moments of AdamW
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
        (None, "no such checkpoint"),
        (b"nonsense", "not a checkpoint of this project"),
        ({"weight": torch.ones(2)}, "not a checkpoint of this project"),
    ],
)
def test_rejects_other_files(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"model\.pth: {message}"):
        ModelFile.of_checkpoint(path)


def test_rejects_invalid_model_files(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match=r"model\.pt: the name of a model file must end with \.safetensors"):
        ModelFile.of_checkpoint(checkpoint).save(tmp_path / "model.pt")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(1)}, foreign)
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: no samcp\.config and samcp\.vocabulary"):
        ModelFile.load(foreign)
    foreign.write_bytes(foreign.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: not a safetensors file, or damaged"):
        ModelFile.load(foreign)


def test_config_of_another_version(checkpoint: Path) -> None:
    text = ModelFile.of_checkpoint(checkpoint).config
    with pytest.raises(CheckpointError, match=r"unknown to this version .*MODEL.SAMCP.GONE"):
        parse_config(text.replace("HIDDEN_DIM: 48", "HIDDEN_DIM: 48\n    GONE: 1"))


SMALL = {
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.SAMCP.HIDDEN_DIM": 32,
    "MODEL.SAMCP.FFN_DIM": 24,
    "MODEL.SAMCP.ROI_FC_DIM": 16,
    "MODEL.SAMCP.ENC_LAYERS": 2,
    "MODEL.SAMCP.DEC_LAYERS": 2,
    "MODEL.SAMCP.TEXT.ENCODER": "learned",
    "MODEL.SAMCP.TEXT.LEARNED_DIM": 12,
}
# Patterns of our names -> released names; after ":", the part of a packed projection.
RELEASED = [
    (r"backbone\.bottom_up\.stem\.conv1\.norm", r"backbone.bn1"),
    (r"backbone\.bottom_up\.stem\.conv1", r"backbone.conv1"),
    *((rf"backbone\.bottom_up\.res{i + 1}", f"backbone.layer{i}") for i in range(1, 5)),
    (r"(layer\d\.\d+)\.shortcut\.norm", r"\1.downsample.1"),
    (r"(layer\d\.\d+)\.shortcut", r"\1.downsample.0"),
    (r"(layer\d\.\d+)\.conv(\d)\.norm", r"\1.bn\2"),
    *((rf"backbone\.fpn_lateral{i + 2}\.norm", f"neck.lateral_convs.{i}.gn") for i in range(4)),
    *((rf"backbone\.fpn_lateral{i + 2}", f"neck.lateral_convs.{i}.conv") for i in range(4)),
    *((rf"backbone\.fpn_output{i + 2}\.norm", f"neck.fpn_convs.{i}.gn") for i in range(4)),
    *((rf"backbone\.fpn_output{i + 2}", f"neck.fpn_convs.{i}.conv") for i in range(4)),
    (r"patch_encoder\.roi_embedding\.norm", "roi_norm"),
    (r"patch_encoder\.roi_embedding\.mlp", "shared_mlp"),
    (r"patch_encoder\.position\.mlp", "ref_point_head"),
    (r"decoder\.position\.mlp", "decoder.ref_point_head"),
    (r"patch_encoder\.(layers\.\d)\.self_attention\.norm", r"encoder_patch.\1.norms.0"),
    (r"patch_encoder\.(layers\.\d)\.ffn\.norm", r"encoder_patch.\1.norms.1"),
    (r"decoder\.(layers\.\d)\.cross_attention\.norm", r"decoder.\1.norms.0"),
    (r"decoder\.(layers\.\d)\.self_attention\.norm", r"decoder.\1.norms.1"),
    (r"decoder\.(layers\.\d)\.ffn\.norm", r"decoder.\1.norms.2"),
    (r"patch_encoder", "encoder_patch"),
    (r"self_attention\.(\w)_proj\.(\w+)", r"self_attn.attn.in_proj_\2:\1"),
    (r"cross_attention\.(\w)_proj\.(\w+)", r"cross_attn.attn.in_proj_\2:\1"),
    (r"self_attention\.out_proj", "self_attn.attn.out_proj"),
    (r"cross_attention\.out_proj", "cross_attn.attn.out_proj"),
    (r"affinity\.query_ffn\.0", "fc_affinity_proposals.layers.0.0"),
    (r"affinity\.query_ffn\.2", "fc_affinity_proposals.layers.1"),
    (r"affinity\.patch_ffn\.0", "fc_affinity_patches.layers.0.0"),
    (r"affinity\.patch_ffn\.2", "fc_affinity_patches.layers.1"),
    (r"affinity\.mix", "conv_aff"),
    (r"affinity\.log_scale", "logit_scale"),
    (r"affinity\.patch_bias", "bias_lang"),
    (r"affinity\.bias", "bias0"),
    (r"ffn\.mlp\.0", "ffn.layers.0.0"),
    (r"ffn\.mlp\.2", "ffn.layers.1"),
    (r"(shared_mlp|ref_point_head)\.0", r"\1.layers.0"),
    (r"(shared_mlp|ref_point_head)\.2", r"\1.layers.1"),
    (r"query_builder\.text_content\.0", "semantic_fc"),
    (r"query_builder\.text_content\.1", "semantic_norm"),
    (r"query_builder\.text_box", "semantic_reference_fc"),
    (r"classifier\.query_proj", "bbox_head.cls_branches.0"),
    (r"classifier\.text_proj", "bbox_head.text_porj"),
    (r"classifier\.log_scale", "bbox_head.logit_scale"),
    (r"classifier\.text_bias", "bbox_head.bias_lang"),
    (r"classifier\.bias", "bbox_head.bias0"),
]


def released_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict in the format of the released code, except for the channel order of position embeddings."""
    released: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for ours, theirs in RELEASED:
            name = re.sub(ours, theirs, name)
        packed, _, _ = name.partition(":")
        if ".conv_aff." in name and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        elif tensor.ndim == 0:
            tensor = tensor[None]
        released[packed] = torch.cat([released[packed], tensor]) if packed in released else tensor
    return released


@pytest.fixture
def small_model() -> dict[str, torch.Tensor]:
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *(part for item in SMALL.items() for part in item)])
    model = SAMCP(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return {k: v for k, v in model.state_dict().items() if not k.startswith("class_embedding.")}


OPTIONS = [str(part) for item in SMALL.items() for part in item]


def test_options_may_follow_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["x", "released", "in.pth", "out.safetensors", "A", "1", "--config-file", "mine.yaml"]
    )
    arguments = convert_checkpoint._parse_arguments()
    assert (arguments.config_file, arguments.opts) == ("mine.yaml", ["A", "1"])
    arguments = samcp.cli._parser().parse_args(["export", "in.pth", "out.safetensors", "--half"])
    assert arguments.half
    assert arguments.opts == []


def test_target_that_cannot_be_written_is_one_line(
    small_model: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": released_state(small_model)}, tmp_path / "released.pth")
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "model.safetensors"
    command = ["x", "released", str(tmp_path / "released.pth"), str(target), *OPTIONS, "--config-file", str(CONFIG)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"error: .*file.* cannot be created"):
        convert_checkpoint.main()


def test_conversion_of_released_model(
    small_model: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unused = {"encoder.layers.0.ffn.weight": torch.zeros(1), "backbone.bn1.num_batches_tracked": torch.tensor(3)}
    source, target = tmp_path / "released.pth", tmp_path / "model.safetensors"
    torch.save({"state_dict": released_state(small_model) | unused}, source)
    convert_checkpoint.convert_released_checkpoint(source, target, str(CONFIG), OPTIONS)
    assert "not used: backbone.bn1 (1), encoder.layers (1)" in capsys.readouterr().out
    model = ModelFile.load(target)
    assert len(model.vocabulary.names) == 133
    assert model.tensors.keys() == small_model.keys()
    for name, tensor in small_model.items():
        if not name.endswith("position.mlp.0.weight"):  # channels in another order, see test_released
            assert torch.equal(model.tensors[name], tensor), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.norm.weight": None}, "1 tensors missing for the config's model: decoder.norm.weight"),
        ({"decoder.norm.weight": torch.zeros(3)}, "1 tensors with other shapes .*: decoder.norm.weight"),
        ({"decoder.layers.9.norms.0.bias": torch.zeros(3)}, "1 tensors unexpected .*: decoder.layers.9"),
        ({"head.weight": torch.zeros(3)}, "1 names are not of the released SamCP model: head.weight"),
    ],
)
def test_rejects_released_models_of_other_architectures(
    small_model: dict[str, torch.Tensor], tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    state = {name: value for name, value in (released_state(small_model) | change).items() if value is not None}
    torch.save(state, tmp_path / "released.pth")
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint.convert_released_checkpoint(
            tmp_path / "released.pth", tmp_path / "model.safetensors", str(CONFIG), OPTIONS
        )
