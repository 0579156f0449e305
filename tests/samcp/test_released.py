"""Decoder and assignment against outputs recorded from the released code (tests/data)."""

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
from samcp.modeling.queries import QuerySet, query_visibility
from samcp.released import convert_released

DATA = Path(__file__).parents[1] / "data"
SEMANTIC, DIM, LAYERS = 13, 64, 3


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    """Return inputs, outputs and weights ("w.") of the released decoder."""
    with np.load(DATA / "authors_decoder.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def released_state(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the decoder's state dict with the names of the released model."""
    return {f"decoder.{name[2:]}": value for name, value in recorded.items() if name.startswith("w.")}


@pytest.fixture(scope="module")
def outputs(recorded: dict[str, Tensor], released_state: dict[str, Tensor]) -> list[DecoderOutput]:
    decoder = AffinityDecoder(dim=DIM, num_heads=8, ffn_dim=128, num_layers=LAYERS, query_enhancement=False)
    state, _ = convert_released(released_state)
    decoder.load_state_dict({name.removeprefix("decoder."): value for name, value in state.items()})
    valid = ~recorded["patch_padding"]
    num_patches = valid.shape[1]
    patches = PatchBatch(
        boxes=recorded["patch_boxes"],
        roi_masks=torch.ones(*valid.shape, 7, 7),
        valid=valid,
        image_sizes=recorded["image_shape"].expand(len(valid), 2),
    )
    queries = QuerySet(
        content=recorded["query"],
        boxes=box_convert(recorded["reference"], "cxcywh", "xyxy"),
        visible=query_visibility(SEMANTIC, num_patches, valid, None),
        num_semantic=SEMANTIC,
        num_instance=num_patches,
    )
    with torch.no_grad():
        return decoder.eval()(
            queries=queries,
            features=recorded["patches"],
            position=recorded["patch_pos"],
            patches=patches,
            levels=[torch.zeros(len(valid), DIM, 8, 8)],
            embed_boxes=lambda boxes: boxes,  # query enhancement is off
        )


def largest_difference(name: str, ours: Tensor, theirs: Tensor) -> float:
    difference = (ours - theirs).abs().max().item()
    print(f"\n{name}: largest difference {difference:.1e}", end="")
    return difference


@pytest.mark.parametrize("layer", range(LAYERS))
def test_decoder_equals_the_released_code(
    layer: int, recorded: dict[str, Tensor], outputs: list[DecoderOutput], capsys: pytest.CaptureFixture[str]
) -> None:
    output = outputs[layer]
    boxes = box_convert(recorded["out_boxes"][layer + 1], "cxcywh", "xyxy")
    with capsys.disabled():
        assert largest_difference(f"layer {layer}, queries", output.queries[0], recorded["out"][layer, 0]) < 1e-5
        logits = recorded["affinity"][layer, 0]
        assert largest_difference(f"layer {layer}, affinities", output.affinity_logits[0], logits) < 1e-5
        assert largest_difference(f"layer {layer}, boxes", output.boxes[0], boxes[0]) < 1e-5


def test_first_layer_of_padded_image_equals_the_released_code(
    recorded: dict[str, Tensor], outputs: list[DecoderOutput], capsys: pytest.CaptureFixture[str]
) -> None:
    """Later layers differ, since padded patches enter the query boxes in the released code."""
    queries, patches = ~recorded["query_padding"][1], ~recorded["patch_padding"][1]
    ours, theirs = outputs[0].affinity_logits[1][queries][:, patches], recorded["affinity"][0, 1][queries][:, patches]
    with capsys.disabled():
        assert (
            largest_difference("padded, queries", outputs[0].queries[1, queries], recorded["out"][0, 1, queries]) < 1e-5
        )
        assert largest_difference("padded, affinities", ours, theirs) < 1e-5


def test_assignment_equals_the_released_code(capsys: pytest.CaptureFixture[str]) -> None:
    """Compare positive, negative and ignored pairs of 9 entities and 60 patches, given their overlaps."""
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
