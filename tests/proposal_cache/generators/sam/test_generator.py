"""SamGenerator compared with segment_anything: the same masks, boxes, scores and order."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam

from proposal_cache import Patches, rle
from proposal_cache.generators.sam import SamGenerator, SamParameters
from proposal_cache.generators.sam import search as search_module
from proposal_cache.generators.sam.decoder import PromptDecoder
from tests.proposal_cache.small_sam import small_sam, smooth_image

# Parameters of most tests; of the masks of small_sam, some pass.
SEARCH: dict[str, Any] = {"points_per_side": 6, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.7}
ALL_MASKS = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


def original(sam: Sam, image: np.ndarray, at_least: int = 3, **parameters: Any) -> list[dict[str, Any]]:
    """Return the records of segment_anything, which must be at least so many, but not all masks."""
    records = SamAutomaticMaskGenerator(sam, **parameters).generate(image)
    assert at_least <= len(records) < 3 * parameters["points_per_side"] ** 2
    return records


def generate(sam: Sam, image: np.ndarray, memory_budget: int | None = None, **parameters: Any) -> Patches:
    return SamGenerator(sam, SamParameters(**parameters), memory_budget=memory_budget)(image)


def assert_same(patches: Patches, records: list[dict[str, Any]]) -> None:
    assert len(patches) == len(records)
    masks = np.array([record["segmentation"] for record in records])
    ours = patches.decode()
    iou = (masks & ours).sum((1, 2)) / (masks | ours).sum((1, 2))
    assert iou.min() >= 0.999
    assert np.abs(patches.areas - [record["area"] for record in records]).max() <= 2
    boxes = np.array([record["bbox"] for record in records])  # x, y, width - 1, height - 1
    assert np.abs(patches.boxes - np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1]).max() <= 1
    np.testing.assert_allclose(patches.predicted_iou, [record["predicted_iou"] for record in records], rtol=1e-4)
    np.testing.assert_allclose(patches.stability_score, [record["stability_score"] for record in records], rtol=1e-3)


@pytest.fixture(params=[False, True], ids=["as on a CPU", "as on a GPU"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upscale prompts one by one, as on a CPU, or all prompts of a batch together, as on other devices."""
    monkeypatch.setattr(PromptDecoder, "_upscales_at_once", request.param)


CASES: dict[str, tuple[tuple[int, int], int, dict[str, Any]]] = {  # image size, seed, parameters beside SEARCH
    "landscape": ((121, 163), 0, {"points_per_side": 8, "stability_score_thresh": 0.8}),
    "portrait": ((97, 61), 1, {"points_per_side": 9, "pred_iou_thresh": 0.8}),
    "large": ((411, 300), 2, {"points_per_side": 8, "pred_iou_thresh": 0.6, "stability_score_thresh": 0.9}),
    "sliver": ((300, 41), 0, {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.2}),
    "strict nms": ((120, 160), 1, {"points_per_side": 10, "stability_score_thresh": 0.6, "box_nms_thresh": 0.3}),
    "offset": (
        (120, 160),
        2,
        {"points_per_side": 7, "stability_score_thresh": 0.5, "stability_score_offset": 4.0, "box_nms_thresh": 0.9},
    ),
    "crops": ((150, 203), 0, {"crop_n_layers": 1}),
    "two layers of crops": (
        (131, 120),
        1,
        {"points_per_side": 8, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.8, "crop_n_layers": 2}
        | {"crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.5, "crop_nms_thresh": 0.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_same_masks_as_segment_anything(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size, seed, parameters = CASES[case]
    sam, image, parameters = small_sam(seed=seed), smooth_image(*size, seed=seed), SEARCH | parameters
    records = original(sam, image, **parameters)
    for at_once in (False, True):  # as on a CPU, as on a GPU
        monkeypatch.setattr(PromptDecoder, "_upscales_at_once", at_once)
        assert_same(generate(sam, image, **parameters), records)


@pytest.mark.parametrize(
    "model", [{"width": 48, "heads": 4}, {"image_size": 512}], ids=["other width", "other resolution"]
)
def test_same_masks_of_other_models(model: dict[str, int]) -> None:
    sam, image, parameters = small_sam(**model), smooth_image(90, 131), SEARCH | {"points_per_side": 5}
    assert_same(generate(sam, image, **parameters), original(sam, image, **parameters))


@pytest.mark.usefixtures("_both_ways")
def test_all_masks_are_kept_without_thresholds() -> None:
    sam, image = small_sam(), smooth_image(60, 80)
    records = SamAutomaticMaskGenerator(sam, **ALL_MASKS).generate(image)
    patches = generate(sam, image, **ALL_MASKS)
    assert len(patches) == len(records) == 48
    assert patches.areas.tolist() == pytest.approx([record["area"] for record in records], abs=2)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("crop_n_layers", [0, 1])
def test_no_mask_passes(crop_n_layers: int) -> None:
    parameters = {"points_per_side": 3, "pred_iou_thresh": 9.0, "crop_n_layers": crop_n_layers}
    patches = generate(small_sam(), smooth_image(60, 80), **parameters)
    assert (len(patches), patches.height, patches.width) == (0, 60, 80)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("memory_budget", [1, 1 << 30], ids=["one prompt per batch", "one batch"])
def test_same_masks_with_other_memory_budgets(memory_budget: int) -> None:
    sam, image, parameters = small_sam(), smooth_image(120, 160), SEARCH | {"pred_iou_thresh": 0.9}  # few prompts pass
    assert_same(generate(sam, image, memory_budget, **parameters), original(sam, image, **parameters))


def test_masks_are_decoded_again_if_their_suppressor_is_suppressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: all masks but the last are suppressed after each batch, except at the end."""
    sam, image = small_sam(seed=1), smooth_image(120, 160, seed=1)
    real_suppress = search_module.suppress
    calls = []

    def suppress(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        kept = real_suppress(*arguments)
        return kept if len(calls) == 37 else kept[-1:]

    monkeypatch.setattr(search_module, "suppress", suppress)
    assert_same(generate(sam, image, memory_budget=1, **SEARCH), original(sam, image, at_least=4, **SEARCH))
    assert len(calls) == 37, "one per batch of one prompt, one for all"


def test_description() -> None:
    description = SamGenerator(small_sam(), SamParameters(points_per_side=7)).describe()
    assert description["name"] == "sam"
    assert description["points_per_side"] == 7
    assert description["weights_sha256"] is None
    assert set(SamParameters.__dataclass_fields__) < set(description)


@pytest.mark.parametrize(
    "image",
    [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))],
    ids=["empty", "grey", "with alpha", "float"],
)
def test_rejects_other_arrays_than_rgb_images(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
        SamGenerator(small_sam())(image)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"points_per_side": 0}, "points_per_side is 0"),
        ({"stability_score_offset": -1.0}, "must not be negative"),
        ({"crop_n_layers": -1}, "crop_n_layers is -1"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor 0"),
        ({"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, r"no points for .* 3 / 2\^2"),
    ],
)
def test_rejects_invalid_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamParameters(**parameters)


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="'float8', must be one of float32"):
        SamGenerator(small_sam(), dtype="float8")


@pytest.mark.parametrize(("dtype", "agreement"), [("bfloat16", 0.97), ("float16", 0.99)])
def test_lower_precision_is_close(dtype: str, agreement: float) -> None:
    image, parameters = smooth_image(120, 160), SamParameters(**ALL_MASKS)
    exact, rounded = (SamGenerator(small_sam(), parameters, dtype=name)(image) for name in ("float32", dtype))
    assert len(exact) == len(rounded) == 48
    assert not np.array_equal(exact.predicted_iou, rounded.predicted_iou)
    assert np.sort(rounded.predicted_iou) == pytest.approx(np.sort(exact.predicted_iou), abs=0.2)
    best = rle.iou(exact.rles, rounded.rles, 120, 160).max(1)
    assert best[exact.areas > 50].mean() >= agreement


@pytest.mark.parametrize("min_area", [30, 400])
def test_min_mask_region_area(min_area: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)  # noise gives fragmented masks
    sam, parameters = small_sam(seed=1), SEARCH | {"stability_score_thresh": 0.3}
    patches = generate(sam, image, min_mask_region_area=min_area, **parameters)
    assert_same(patches, original(sam, image, min_mask_region_area=min_area, **parameters))
    assert not set(patches.rles) <= set(generate(sam, image, **parameters).rles)


@pytest.mark.slow
def test_compiled_generator() -> None:
    image, parameters = smooth_image(120, 160), SamParameters(**SEARCH)
    eager, compiled = (SamGenerator(small_sam(), parameters, compile=flag)(image) for flag in (False, True))
    assert len(eager) == len(compiled) > 0
    assert eager.areas.tolist() == pytest.approx(compiled.areas.tolist(), abs=2)


@pytest.mark.slow
@pytest.mark.usefixtures("_both_ways")
def test_number_of_compiled_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of more shapes than the recompilation limit of torch.compile."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    generator = SamGenerator(small_sam(), SamParameters(**SEARCH | {"points_per_side": 5}), compile=True)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        assert sum(len(generator(smooth_image(height, 160))) for height in range(40, 160, 10)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["vit_b", "vit_l", "vit_h"])
def test_same_masks_of_the_published_models(model_type: str) -> None:
    """The published architectures with random weights, and with the decoder of the small model."""
    torch.manual_seed(0)
    sam = sam_model_registry[model_type](checkpoint=None)
    small = small_sam()
    sam.mask_decoder.load_state_dict(small.mask_decoder.state_dict())
    sam.prompt_encoder.load_state_dict(small.prompt_encoder.state_dict())
    parameters = {"points_per_side": 3, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.1}
    image = smooth_image(480, 641)
    assert_same(generate(sam, image, **parameters), original(sam, image, at_least=2, **parameters))
