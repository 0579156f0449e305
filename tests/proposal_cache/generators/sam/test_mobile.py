"""MobileSAM compared with its published module, whose names, shapes and output are in tests/data/mobile_sam.npz."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from proposal_cache import CacheError
from proposal_cache.generators.sam import SamGenerator
from proposal_cache.generators.sam.checkpoint import load_sam
from proposal_cache.generators.sam.mobile import build_mobile_sam
from tests.proposal_cache.generators.sam.test_generator import SEARCH, assert_same, generate, original
from tests.proposal_cache.small_sam import small_sam, smooth_image

PUBLISHED = Path(__file__).parents[3] / "data" / "mobile_sam.npz"


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return weights by name, drawn in order by a generator of fixed output, that preserve the scale of activations."""
    random = np.random.RandomState(0)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.from_numpy(random.standard_normal(shape)).float()
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            weights[name] = 1 + 0.1 * noise.abs()
        elif len(shape) == 1:
            weights[name] = float(name.endswith("weight")) + 0.1 * noise
        else:
            weights[name] = noise / np.prod(shape[1:]) ** 0.5
    return weights


def random_image() -> Tensor:
    return torch.from_numpy(np.random.RandomState(1).standard_normal((1, 3, 1024, 1024))).float()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Return random weights with the published names and shapes."""
    with np.load(PUBLISHED) as file:
        shapes = [tuple(int(size) for size in text.split()) for text in file["shapes"]]
        return random_weights(dict(zip(file["names"].tolist(), shapes, strict=True)))


@pytest.fixture(scope="module")
def checkpoint(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Sam:
    return load_sam("vit_t", checkpoint)[0]


def test_every_published_weight_is_read(weights: dict[str, Tensor], loaded: Sam) -> None:
    """All but those of the ImageNet classifier, which segmentation does not use."""
    classifier = {name for name in weights if name.startswith(("image_encoder.norm_head.", "image_encoder.head."))}
    assert len(weights) == 439
    assert len(classifier) == 4
    used = [weight for name, weight in weights.items() if name not in classifier]
    read = list(loaded.state_dict().values())
    assert sorted(weight.double().sum().item() for weight in read) == pytest.approx(
        sorted(weight.double().sum().item() for weight in used)
    )


def test_embedding_of_the_published_encoder(loaded: Sam) -> None:
    with torch.inference_mode():
        embedding = loaded.image_encoder(random_image())
    assert embedding.shape == (1, 256, 64, 64)
    with np.load(PUBLISHED) as file:
        np.testing.assert_allclose(embedding[0, ::8, ::4, ::4].numpy(), file["embedding"], atol=1e-5)


def test_same_masks_as_segment_anything() -> None:
    """The small model's decoder on top of MobileSAM's encoder."""
    torch.manual_seed(0)
    sam, small = build_mobile_sam(256), small_sam()
    sam.mask_decoder.load_state_dict(small.mask_decoder.state_dict())
    sam.prompt_encoder.load_state_dict(small.prompt_encoder.state_dict())
    parameters = SEARCH | {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.1}
    image = smooth_image(121, 163)
    assert_same(generate(sam, image, **parameters), original(sam, image, **parameters))


def test_wrong_model_type(checkpoint: Path) -> None:
    with pytest.raises(CacheError, match="is a checkpoint of vit_t, not vit_h: use model type vit_t"):
        SamGenerator.from_checkpoint("vit_h", checkpoint)


def test_checkpoint_lacks_a_weight(weights: dict[str, Tensor], tmp_path: Path) -> None:
    missing = "image_encoder.layers.1.downsample.conv1.c.weight"
    torch.save({name: weight for name, weight in weights.items() if name != missing}, tmp_path / "part.pt")
    with pytest.raises(CacheError, match="does not match SAM's vit_t"):
        load_sam("vit_t", tmp_path / "part.pt")
