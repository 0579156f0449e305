"""Training of the small networks that make patches, which continues where its last checkpoint was written."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from proposal_cache.store.durable import append_durably
from proposal_cache.torch_files import read_torch_file, write_torch_file
from samcp.errors import CheckpointError

_CLIP = 5.0  # norm of the gradients


@dataclass(frozen=True)
class Schedule:
    """Parameters of a training.

    Attributes:
        iterations: number of steps.
        batch: images per step.
        lr, backbone_lr: learning rates after the warm-up; they fall to 0 by a cosine.
        weight_decay: of AdamW.
        seed: of images, augmentation and initial weights.
    """

    iterations: int
    batch: int = 4
    lr: float = 1e-3
    backbone_lr: float = 2e-4
    weight_decay: float = 1e-4
    seed: int = 0


class ResumableTraining(ABC):
    """Training with AdamW and a checkpoint; a subclass defines the losses.

    Args:
        network: with its initial weights; it is trained in place.
        backbone: part of the network that has a learning rate of its own; parameters without gradient are not trained.
        dataset: `iterations * batch` items; item i must not depend on the reading of others.
        schedule: parameters; a checkpoint with others is rejected.
        output: folder of the checkpoint.
        extra: further parts of the checkpoint.
        collate: batch of a list of items; None for PyTorch's own.
    """

    def __init__(
        self,
        network: nn.Module,
        backbone: nn.Module,
        dataset: Dataset[Any],
        schedule: Schedule,
        output: Path,
        *,
        extra: Mapping[str, nn.Module] = MappingProxyType({}),
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self._dataset = dataset
        self._collate = collate
        self._checkpoint = output / "checkpoint.pth"
        output.mkdir(parents=True, exist_ok=True)
        slow = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        inside = {id(parameter) for parameter in backbone.parameters()}
        rest = [parameter for parameter in network.parameters() if id(parameter) not in inside]
        optimizer = torch.optim.AdamW(
            [{"params": slow, "lr": schedule.backbone_lr}, {"params": rest, "lr": schedule.lr}],
            weight_decay=schedule.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        self._optimizer, self._scheduler = optimizer, scheduler
        self._state: dict[str, Any] = {"network": network, "optimizer": optimizer, "scheduler": scheduler, **extra}
        self._start = 0
        if self._checkpoint.exists():
            self._load()

    @abstractmethod
    def step(self, iteration: int, batch: Any) -> dict[str, Tensor]:
        """Compute the gradients of a batch, and return the losses by name, for the log."""

    def run(self, *, workers: int = 1, save_every: int = 200) -> Iterator[tuple[int, dict[str, float]]]:
        """Train, and yield the iteration and the mean losses since the last time, whenever a checkpoint is written."""
        schedule = self.schedule
        remaining = Subset(self._dataset, range(self._start * schedule.batch, schedule.iterations * schedule.batch))
        loader = DataLoader(remaining, schedule.batch, num_workers=workers, collate_fn=self._collate)
        last = self._start
        sums: dict[str, float] = {}
        bar = tqdm(loader, "training", initial=self._start, total=schedule.iterations, unit="it")
        for iteration, batch in enumerate(bar, self._start + 1):
            for name, value in self._update(iteration, batch).items():
                sums[name] = sums.get(name, 0.0) + value.item()
            if iteration % save_every == 0 or iteration == schedule.iterations:
                self._save(iteration)
                yield iteration, {name: value / (iteration - last) for name, value in sums.items()}
                last, sums = iteration, {}

    def write_log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Append the figures of an iteration to log.jsonl in the output folder."""
        line = json.dumps({"iteration": iteration, **figures}) + "\n"
        append_durably(self._checkpoint.with_name("log.jsonl"), line.encode())

    def _update(self, iteration: int, batch: Any) -> dict[str, Tensor]:
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        losses = self.step(iteration, batch)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self._optimizer.step()
        self._scheduler.step()
        return losses

    def _factor(self, step: int) -> float:
        warm_up = min(1.0, (step + 1) / 100)
        return warm_up * 0.5 * (1 + float(np.cos(np.pi * min(1.0, step / self.schedule.iterations))))

    def _save(self, iteration: int) -> None:
        content = {name: part.state_dict() for name, part in self._state.items()}
        content |= {"schedule": asdict(self.schedule), "iteration": iteration}
        write_torch_file(self._checkpoint, content)

    def _load(self) -> None:
        try:
            content: dict[str, Any] = read_torch_file(self._checkpoint)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._checkpoint}: damaged ({error}); delete it to start again") from error
        if content["schedule"] != asdict(self.schedule):
            raise CheckpointError(
                f"{self._checkpoint} was written with {content['schedule']}, not {asdict(self.schedule)}; "
                "use the same options or another --output"
            )
        for name, part in self._state.items():
            part.load_state_dict(content[name])
        self._start = content["iteration"]
