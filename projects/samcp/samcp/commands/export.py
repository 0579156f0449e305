"""Export of trained models: model files, and networks for other runtimes."""

import argparse
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.export import ExportedProgram

from samcp import model_zoo
from samcp.checkpoint import load_trained_model
from samcp.config import parse_config
from samcp.data.files import write_bytes
from samcp.errors import UsageError, exit_with_message
from samcp.export import SUFFIX, ModelFile
from samcp.modeling.meta_arch import SAMCP
from samcp.modeling.tensor_network import TensorNetwork, export_network, network_inputs

_PROGRAM, _ONNX = ".pt2", ".onnx"
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_TOLERANCE = 1e-4  # of probabilities
_OPSET = 20


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message():
        export(arguments.model, arguments.target, half=arguments.half, opts=arguments.opts)


def export(source: str, target: Path, *, half: bool = False, opts: Sequence[str] = ()) -> None:
    """Write a model in the format of the target's suffix, and print what was written.

    Args:
        source: checkpoint of train_net.py or, for a network, also a model file or the name of a shipped model.
        target: *.safetensors, *.onnx or *.pt2.
        half, opts: half precision, and config keys to change with it; only for *.safetensors.

    Raises:
        UsageError: an option does not fit the format, or a package is missing.
        CheckpointError: the source is missing, damaged, or of another program.
    """
    if target.suffix == SUFFIX:
        _export_model_file(Path(source), target, half, opts)
    elif target.suffix not in (_PROGRAM, _ONNX):
        raise UsageError(f"{target}: the name must end with {_ONNX}, {_PROGRAM} or {SUFFIX}, which selects the format")
    elif half or opts:
        raise UsageError(f"{target}: --half and config keys are for {SUFFIX} only")
    else:
        _export_network(Path(model_zoo.find(source)), target)


def show(path: Path) -> None:
    """Print the contents of a model file."""
    model = ModelFile.load(path)
    names, is_thing = model.vocabulary.names, model.vocabulary.is_thing
    numbers = sum(tensor.numel() for tensor in model.tensors.values())
    print(f"{len(model.tensors)} tensors, {numbers / 1e6:.1f} M parameters")
    print(f"{len(names)} classes, {sum(is_thing)} of them things: {', '.join(names)}")


def _export_model_file(source: Path, target: Path, half: bool, opts: Sequence[str]) -> None:
    if opts and not half:
        raise UsageError(f"{' '.join(opts)}: config keys are changed with --half only")
    model = ModelFile.of_checkpoint(source)
    (model.for_release(opts) if half else model).save(target)
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{source}: {before / 1e6:.1f} MB -> {target}: {after / 1e6:.1f} MB")
    show(target)


def _export_network(source: Path, target: Path) -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if target.suffix == _ONNX and missing:
        raise UsageError(f"{target}: needs the packages {', '.join(missing)}; install them by pip install '.[export]'")
    file = ModelFile.load(source) if source.suffix == SUFFIX else ModelFile.of_checkpoint(source)
    cfg = parse_config(file.config)
    cfg.MODEL.DEVICE = "cpu"
    model = load_trained_model(cfg, str(source), file.vocabulary).eval()
    program = export_network(model)
    content = _to_onnx(program) if target.suffix == _ONNX else _to_program(program)
    run = _run_onnx(content) if target.suffix == _ONNX else _run_program(content)
    difference = _difference(model, run)
    if not difference <= _TOLERANCE:  # or NaN
        raise UsageError(
            f"{target} is not written: the probabilities of the exported network differ from PyTorch's by "
            f"{difference:.1g}; export to another format"
        )
    write_bytes(target, content)
    words = target.with_suffix(".npz")
    embedding = model.class_embedding
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays,
        text=embedding().detach().numpy(),
        semantic_words=embedding.names[model.semantic_classes].numpy(),
        class_of_word=embedding.class_of.numpy(),
        class_names=np.array(file.vocabulary.names),
        class_is_thing=np.array(file.vocabulary.is_thing),
    )
    write_bytes(words, arrays.getvalue())
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB; differs from PyTorch by at most {difference:.1g}")
    print(f"{words}: inputs text and semantic_words for the {len(file.vocabulary.names)} classes of the training")


Run = Callable[[Mapping[str, Tensor]], Sequence[np.ndarray]]


def _to_program(program: ExportedProgram) -> bytes:
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def _run_program(content: bytes) -> Run:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda inputs: [output.numpy() for output in module(**inputs)]


def _to_onnx(program: ExportedProgram) -> bytes:
    onnx = torch.onnx.export(
        program, dynamo=True, opset_version=_OPSET, output_names=["scores", "affinity"], verbose=False
    )
    assert onnx is not None
    return onnx.model_proto.SerializeToString()


def _run_onnx(content: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    used = {value.name for value in session.get_inputs()}  # MaskRoI can be off
    return lambda inputs: session.run(None, {name: x.numpy() for name, x in inputs.items() if name in used})


@torch.no_grad()
def _difference(model: SAMCP, run: Run) -> float:
    """Return the largest difference of probabilities from PyTorch, for a random image of another size than exported."""
    random = torch.Generator().manual_seed(0)
    height, width, number = 150, 210, 9
    corners = torch.rand(2, number, 2, generator=random) * torch.tensor([width, height])
    patches = Instances((height, width))
    patches.patch_boxes = Boxes(torch.cat([corners.amin(0), corners.amax(0) + 1], dim=1))
    patches.roi_masks = torch.rand(number, model.roi_size, model.roi_size, generator=random)
    image = torch.rand(3, height, width, generator=random) * 255
    inputs = network_inputs(model, image, patches)
    expected = TensorNetwork(model).eval()(**inputs)
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(run(inputs), expected, strict=True))
