"""Same weights and inputs, same numbers: against outputs captured from the released code (tests/data)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from samcp.data.affinity_targets import AffinityRule
from samcp.errors import CheckpointError
from samcp.modeling.affinity_decoder import AffinityDecoder, DecoderOutput
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.patch_encoder import RoIEmbedding
from samcp.modeling.queries import QuerySet, query_visibility
from samcp.released import convert_released

DATA = Path(__file__).parents[1] / "data"
SEMANTIC, DIM, LAYERS = 13, 64, 3


@pytest.fixture(scope="module")
def captured() -> dict[str, Tensor]:
    """Inputs, outputs and weights ("w.") of the released decoder."""
    with np.load(DATA / "authors_decoder.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def released_state(captured: dict[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state dict, with the names that it has inside the released model."""
    return {f"decoder.{name[2:]}": value for name, value in captured.items() if name.startswith("w.")}


@pytest.fixture(scope="module")
def outputs(captured: dict[str, Tensor], released_state: dict[str, Tensor]) -> list[DecoderOutput]:
    decoder = AffinityDecoder(dim=DIM, num_heads=8, ffn_dim=128, num_layers=LAYERS, query_enhancement=False)
    state, _ = convert_released(released_state)
    decoder.load_state_dict({name.removeprefix("decoder."): value for name, value in state.items()})
    valid = ~captured["patch_padding"]
    num_patches = valid.shape[1]
    patches = PatchBatch(
        boxes=captured["patch_boxes"],
        roi_masks=torch.ones(*valid.shape, 7, 7),
        valid=valid,
        image_sizes=captured["image_shape"].expand(len(valid), 2),
    )
    queries = QuerySet(
        content=captured["query"],
        boxes=box_convert(captured["reference"], "cxcywh", "xyxy"),
        visible=query_visibility(SEMANTIC, num_patches, valid, None),
        num_semantic=SEMANTIC,
        num_instance=num_patches,
        num_denoising=0,
    )
    with torch.no_grad():
        return decoder.eval()(
            queries=queries,
            features=captured["patches"],
            position=captured["patch_pos"],
            patches=patches,
            levels=[torch.zeros(len(valid), DIM, 8, 8)],
            roi_embedding=RoIEmbedding(strides=[4], in_channels=DIM, dim=DIM, roi_size=7, fc_dim=8),
        )


def largest_difference(what: str, ours: Tensor, theirs: Tensor) -> float:
    difference = (ours - theirs).abs().max().item()
    print(f"\n{what}: largest difference {difference:.1e}", end="")
    return difference


@pytest.mark.parametrize("layer", range(LAYERS))
def test_decoder_equals_the_released_code(
    layer: int, captured: dict[str, Tensor], outputs: list[DecoderOutput], capsys: pytest.CaptureFixture[str]
) -> None:
    output = outputs[layer]
    boxes = box_convert(captured["out_boxes"][layer + 1], "cxcywh", "xyxy")
    with capsys.disabled():
        assert largest_difference(f"layer {layer}, queries", output.queries[0], captured["out"][layer, 0]) < 1e-5
        logits = captured["affinity"][layer, 0]
        assert largest_difference(f"layer {layer}, affinities", output.affinity_logits[0], logits) < 1e-5
        assert largest_difference(f"layer {layer}, boxes", output.boxes[0], boxes[0]) < 1e-5


def test_padded_image_equals_the_released_code_up_to_its_first_boxes(
    captured: dict[str, Tensor], outputs: list[DecoderOutput], capsys: pytest.CaptureFixture[str]
) -> None:
    """Padded patches enter the released code's query boxes, so that the later layers of a padded image differ."""
    queries, patches = ~captured["query_padding"][1], ~captured["patch_padding"][1]
    ours, theirs = outputs[0].affinity_logits[1][queries][:, patches], captured["affinity"][0, 1][queries][:, patches]
    with capsys.disabled():
        assert (
            largest_difference("padded, queries", outputs[0].queries[1, queries], captured["out"][0, 1, queries]) < 1e-5
        )
        assert largest_difference("padded, affinities", ours, theirs) < 1e-5


def test_assignment_equals_the_released_code(capsys: pytest.CaptureFixture[str]) -> None:
    """Positive, negative and ignored pairs of 9 entities and 60 patches, of given overlaps."""
    with np.load(DATA / "authors_assigner.npz") as file:
        iop, iou, assigned = file["iop"], file["iou"], file["assigned"].T
    affinity, ignore = AffinityRule().assign(iop, iou)
    ours = np.where(affinity, 1, np.where(ignore, -1, 0))
    with capsys.disabled():
        print(f"\nassignments: {(ours != assigned).sum()} of {assigned.size} differ", end="")
    np.testing.assert_array_equal(ours, assigned)
    assert {(-1), 0, 1} == set(np.unique(assigned)), "all three kinds occur"


def test_conversion_of_released_names_is_strict(released_state: dict[str, Tensor]) -> None:
    _, unused = convert_released(released_state)
    roi_norm = [f"decoder.roi_norm.{name}" for name in ("weight", "bias")]
    norms = [f"decoder.layers.{i}.norms.{j}.{name}" for i in range(3) for j in (3, 4) for name in ("weight", "bias")]
    assert sorted(unused) == sorted([*roi_norm, *norms])
    with pytest.raises(CheckpointError, match=r"1 names are not .*: decoder.layers.0.gate.weight"):
        convert_released({**released_state, "decoder.layers.0.gate.weight": torch.zeros(1)})
    copies = {f"bbox_head.cls_branches.{i}.weight": torch.full((2, 2), float(i)) for i in range(2)}
    with pytest.raises(CheckpointError, match=r"cls_branches.1.weight: differs from another"):
        convert_released(copies)
