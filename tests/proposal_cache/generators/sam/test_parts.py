"""Encoder, decoder and upsampling compared with segment_anything."""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from torch import Tensor

from proposal_cache import rle
from proposal_cache.generators.sam.decoder import PromptDecoder
from proposal_cache.generators.sam.encoder import encode_image
from proposal_cache.generators.sam.masks import MaskUpsampler
from tests.proposal_cache.small_sam import small_sam, smooth_image

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def predictor() -> SamPredictor:
    predictor = SamPredictor(small_sam())
    predictor.set_image(smooth_image(120, 160))
    return predictor


def points(count: int) -> Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 190


@pytest.mark.parametrize("memory_budget", [1, 20_000, 1 << 30], ids=["row by row", "some rows", "all at once"])
@torch.inference_mode()
def test_encoder(memory_budget: int) -> None:
    encoder = small_sam().image_encoder
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encode_image(encoder, image, memory_budget), encoder(image), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_decoder(predictor: SamPredictor) -> None:
    prompts = points(12)
    _, iou, logits = predictor.predict_torch(prompts[:, None], torch.ones(12, 1, dtype=torch.int))
    decoder = PromptDecoder(predictor.model)
    tables = decoder.tables(predictor.features, decoder.mask_size)
    decoded = decoder.decode(tables, prompts)
    torch.testing.assert_close(decoded.predicted_iou, iou, rtol=1e-4, atol=1e-5)
    keep = iou > iou.median()
    assert keep.any(1).sum() < 12
    ours = decoder.mask_logits(tables, decoded, keep)
    torch.testing.assert_close(ours, logits[keep], rtol=1e-4, atol=1e-3)
    assert logits.std() > 10
    for window in ((64, 24), (28, 64), (4, 4)):
        part = decoder.mask_logits(decoder.tables(predictor.features, window), decoded, keep)
        torch.testing.assert_close(part, ours[:, : window[0], : window[1]], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 5.0], ids=["smooth", "noisy"])
@pytest.mark.parametrize("size", [(120, 160), (163, 61), (700, 1000), (5, 9), (90, 90)], ids=str)
@torch.inference_mode()
def test_masks(size: tuple[int, int], noise: float) -> None:
    """Stability, boxes and pixels equal those of fully upsampled logits."""
    sam = small_sam()
    random = torch.Generator().manual_seed(0)
    coarse = 8 * torch.randn(7, 1, 5, 5, generator=random) - 4
    logits = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")[:, 0]
    logits += noise * torch.randn(7, 64, 64, generator=random)
    logits[-1] = -9  # an empty mask
    predictor = SamPredictor(sam)
    resized = predictor.transform.apply_image(np.zeros((*size, 3), np.uint8)).shape[:2]
    whole = sam.postprocess_masks(logits[None], resized, size)[0]

    upsampler = MaskUpsampler((64, 64), 256, resized, size, threshold=0.0, memory_budget=100_000, device=CPU)
    logits = logits[:, : upsampler.logits_size[0], : upsampler.logits_size[1]]
    assert (logits.shape[1:] == (64, 64)) == (size[0] == size[1])
    for offset in (0.0, 1.0, 3.0):
        stability, boxes = upsampler.score(logits, offset)
        expected = calculate_stability_score(whole, 0.0, offset)
        torch.testing.assert_close(stability, expected, rtol=2e-3, atol=0, equal_nan=True)
        assert torch.isnan(stability[-1])
        assert torch.equal(boxes, batched_mask_to_box(whole > 0))
    counts = upsampler.encode(logits, (0, 0), size)
    assert (rle.area(counts, *size) == (whole > 0).sum((1, 2)).numpy()).all()
