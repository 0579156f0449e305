"""The network as one function of padded tensors gives the predictions of the model; so do its exported forms."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from PIL import Image
from skimage import data

from samcp import SAMCP, add_samcp_config, commands
from samcp.checkpoint import Checkpointer
from samcp.commands.export import export
from samcp.config_files import find_config
from samcp.errors import UsageError
from samcp.modeling.inference import Predictions
from samcp.modeling.tensor_network import TensorNetwork, network_inputs


def predictions_of(model: SAMCP, scores: torch.Tensor, affinity: torch.Tensor, num_patches: int) -> Predictions:
    """Return the predictions of one image as docs/export.md describes."""
    classes = model.semantic_classes
    first = len(classes)
    affinity = affinity[0, : first + num_patches, :num_patches]
    return Predictions(
        semantic_classes=classes,
        semantic_scores=scores[0, torch.arange(first), classes],
        semantic_affinity=affinity[:first],
        instance_scores=scores[0, first : first + num_patches],
        instance_affinity=affinity[first:],
    )


@pytest.mark.parametrize(("num_patches", "size"), [(7, (64, 96)), (1, (50, 75)), (0, (130, 70))])
@torch.no_grad()
def test_same_predictions_as_the_model(toy: Any, toy_model: SAMCP, num_patches: int, size: tuple[int, int]) -> None:
    model = toy_model.eval()
    item = toy.input(num_patches, {}, size=size)
    [expected] = model.predict_learned(model.encode([item]))
    outputs = TensorNetwork(model).eval()(**network_inputs(model, item["image"], item["patches"]))
    for name, value in vars(predictions_of(model, *outputs, num_patches)).items():
        torch.testing.assert_close(value, getattr(expected, name), atol=1e-5, rtol=0)


@torch.no_grad()
def test_learned_predictions_of_a_model_with_clip(toy: Any) -> None:
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(find_config("miniature/open_vocabulary.yaml"))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    item = toy.input(6, {}, size=(64, 96))
    [expected] = model.predict_learned(model.encode([item]))
    outputs = TensorNetwork(model).eval()(**network_inputs(model, item["image"], item["patches"]))
    for name, value in vars(predictions_of(model, *outputs, 6)).items():
        torch.testing.assert_close(value, getattr(expected, name), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_does_not_matter(toy: Any, toy_model: SAMCP) -> None:
    network, item = TensorNetwork(toy_model.eval()).eval(), toy.input(5, {}, size=(50, 75))
    inputs = network_inputs(toy_model, item["image"], item["patches"])
    padded = dict(inputs, image=inputs["image"].clone())
    padded["image"][:, :, 50:] = 99
    for name, value in (("boxes", 3.0), ("roi_masks", 1.0), ("valid", False)):
        padded[name] = torch.cat([inputs[name], torch.full_like(inputs[name][:, :2], value)], dim=1)
    first = len(toy_model.semantic_classes)
    for output, other in zip(network(**inputs), network(**padded), strict=True):
        torch.testing.assert_close(output[:, : first + 5, :5], other[:, : first + 5, :5])


@pytest.fixture
def checkpoint(toy_model: SAMCP, toy_cfg: CfgNode, tmp_path: Path) -> str:
    toy_cfg.OUTPUT_DIR = str(tmp_path)
    Checkpointer(toy_model, toy_cfg).save("model_final")
    return str(tmp_path / "model_final.pth")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exported_network_equals_the_model(
    checkpoint: str, toy: Any, toy_model: SAMCP, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other numbers of patches and words, and another image size, than when it was exported."""
    target = tmp_path / "out" / f"network{suffix}"
    export(checkpoint, target)
    assert "differs from PyTorch by at most" in capsys.readouterr().out
    item = toy.input(11, {}, size=(100, 150))
    inputs = network_inputs(toy_model.eval(), item["image"], item["patches"])
    with np.load(target.with_suffix(".npz")) as words:
        assert words["class_names"].tolist() == ["disc", "square", "ring", "sky", "grass"]
        np.testing.assert_allclose(words["text"], inputs["text"].detach())
        assert words["semantic_words"].tolist() == [3, 4]
        inputs["text"] = torch.from_numpy(np.concatenate([words["text"], -words["text"][:2]]))
    inputs["semantic_words"] = torch.tensor([3, 4, 6])
    with torch.no_grad():
        expected = TensorNetwork(toy_model).eval()(**inputs)
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        outputs = onnxruntime.InferenceSession(target).run(None, {name: x.numpy() for name, x in inputs.items()})
    else:
        with torch.no_grad():
            outputs = [output.numpy() for output in torch.export.load(target).module()(**inputs)]
    for output, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, wanted.numpy(), atol=1e-4)


@pytest.mark.slow
def test_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export("samcp-everyday-lite", Path("network.onnx"))
    Image.fromarray(data.coffee()).save("photo.jpg")
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    example = page.split("\n## Example\n")[1].split("\n`Inference`")[0]
    values: dict[str, Any] = {}
    exec(textwrap.dedent(example), values)
    assert values["affinity"].shape[2] == len(values["item"].patches) > 50
    assert 0.3 < values["scores"].max() <= 1


@pytest.mark.parametrize("difference", [0.1, float("nan")])
def test_network_with_other_output_is_not_written(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    for name, value in (("export_network", None), ("_to_program", b"new"), ("_run_program", None)):
        monkeypatch.setattr(commands.export, name, lambda *args, value=value: value)
    monkeypatch.setattr(commands.export, "_difference", lambda *args: difference)
    target = tmp_path / "network.pt2"
    target.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"network\.pt2 is not written: the probabilities"):
        export(checkpoint, target)
    assert target.read_bytes() == b"old"
    assert not target.with_suffix(".npz").exists()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("network.pth", {}, r"network\.pth: the name must end with \.onnx, \.pt2 or \.safetensors"),
        ("network.onnx", {"half": True}, r"--half and config keys are for \.safetensors only"),
    ],
)
def test_wrong_options(tmp_path: Path, target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export("model_final.pth", tmp_path / target, **options)
