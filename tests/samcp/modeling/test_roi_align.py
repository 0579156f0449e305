"""CPU RoIAlign against torchvision's, and cached against uncached RoI embeddings."""

import pytest
import torch
from torchvision.ops import roi_align

from samcp.modeling.patch_encoder import RoIEmbedding, RoIEmbeddingCache
from samcp.modeling.roi_align import RoIAlign, channels_last_on_cpu

HEIGHT, WIDTH = 9, 14


def make_rois() -> torch.Tensor:
    """Return RoIs inside, across and outside the image, of the whole image, without area, and thin."""
    return torch.tensor(
        [
            [0, 10.3, 8.1, 60.7, 33.9],
            [1, -20, -20, 130, 90],
            [1, 90, 60, 118, 80],
            [0, 200, 200, 260, 240],
            [0, -60, -40, -30, -20],
            [1, 0, 0, 8 * WIDTH, 8 * HEIGHT],
            [0, 30, 30, 30, 30],
            [1, 3, 2, 3.4, 70],
        ]
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_torchvision_forward_and_backward(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 5, HEIGHT, WIDTH).contiguous(memory_format=layout).requires_grad_()
    rois = make_rois()
    ours = RoIAlign(7, 1 / 8)(features, rois)
    theirs = roi_align(features, rois, 7, 1 / 8, 2, aligned=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradient = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, features, gradient), torch.autograd.grad(theirs, features, gradient)
    )


def test_no_boxes() -> None:
    features = torch.randn(1, 5, HEIGHT, WIDTH, requires_grad=True)
    pooled = RoIAlign(7, 1 / 8)(features, torch.zeros(0, 5))
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_channels_last_keeps_values() -> None:
    level = torch.randn(2, 3, 4, 5)
    same = channels_last_on_cpu(level)
    assert torch.equal(same, level)
    assert same.is_contiguous(memory_format=torch.channels_last)


class TestRoIEmbeddingCache:
    """Computed in float64, since the order of summation differs."""

    levels = tuple(torch.randn(2, 4, HEIGHT // shrunk, WIDTH // shrunk, dtype=torch.float64) for shrunk in (1, 2))

    def embedding(self) -> RoIEmbedding:
        torch.manual_seed(0)
        return RoIEmbedding(strides=[8, 16], in_channels=4, dim=6, roi_size=3, fc_dim=8).double()

    def layers(self) -> list[torch.Tensor]:
        """Return boxes of three layers, each (2, 5, 4), with duplicates within and between images and layers."""
        pool = torch.tensor([[0, 0, 112, 72], [8, 9, 50, 40], [8, 9, 50, 41], [60, 0, 112, 72.0]])
        index = torch.tensor(
            [[[0, 1, 1, 0, 2], [0, 0, 3, 3, 1]], [[2, 2, 1, 0, 0], [1, 1, 1, 1, 1]], [[3] * 5, [2] * 5]]
        )
        return list(pool[index])

    def test_embeddings_and_gradients_equal_uncached(self) -> None:
        embedding = self.embedding()
        regions = RoIEmbeddingCache(embedding, self.levels)
        ours = [regions(boxes) for boxes in self.layers()]
        each = [embedding(self.levels, list(boxes)).unflatten(0, (2, 5)) for boxes in self.layers()]
        torch.testing.assert_close(ours, each)
        parameters = list(embedding.parameters())
        weights = torch.randn(3, 2, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(
            torch.autograd.grad((torch.stack(ours) * weights).sum(), parameters),
            torch.autograd.grad((torch.stack(each) * weights).sum(), parameters),
        )

    def test_each_box_is_embedded_once(self) -> None:
        embedding, embedded = self.embedding(), []
        embedding.register_forward_pre_hook(lambda _, arguments: embedded.extend(map(len, arguments[1])))
        regions = RoIEmbeddingCache(embedding, self.levels)
        for boxes in self.layers():
            regions(boxes)
        assert embedded == [3, 3, 0, 0, 1, 1]
