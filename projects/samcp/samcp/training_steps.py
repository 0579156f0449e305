"""Parts of the trainer's loop: checkpoints on disk, and the check of the loss."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.engine.hooks import PeriodicCheckpointer
from torch import Tensor
from torch.utils.data import DataLoader

from proposal_cache.store.durable import remove
from samcp.errors import DivergenceError

Batch = Sequence[Mapping[str, Any]]


class CheckpointHook(PeriodicCheckpointer):
    """Periodic checkpoints, of which the latest `max_to_keep` stay on disk, and model_final.pth."""

    def before_train(self) -> None:
        """Continue with the checkpoints of a training that is resumed, also if it was killed while it wrote one."""
        super().before_train()
        start = self.trainer.start_iter
        if start:
            files = map(Path, self.checkpointer.get_all_checkpoint_files())  # with those of the user
            periodic = re.compile(rf"{re.escape(self.file_prefix)}_(\d{{7}})\.pth")
            earlier = [f for f in sorted(files) if (m := periodic.fullmatch(f.name)) and int(m[1]) < start]
            self.recent_checkpoints = list(map(str, earlier))  # later ones are written again
        if not self.checkpointer.save_to_disk:
            return
        for incomplete in Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_*.pth.*.tmp"):
            remove(incomplete)
        while len(self.recent_checkpoints) > self.max_to_keep:
            remove(Path(self.recent_checkpoints.pop(0)))
        if start >= self.max_iter and not self._is_complete():
            self.checkpointer.save(f"{self.file_prefix}_final", iteration=start - 1)

    def after_train(self) -> None:
        """Delete the checkpoint of the last iteration, which model_final.pth is a copy of."""
        last = f"{self.file_prefix}_{self.max_iter - 1:07d}.pth"
        is_complete = self._is_complete()
        for file in self.recent_checkpoints:
            if is_complete and file.endswith(last) and self.path_manager.exists(file):
                self.path_manager.rm(file)

    def _is_complete(self) -> bool:
        """Return whether the last checkpoint is model_final.pth."""
        name = Path(self.checkpointer.get_checkpoint_file()).name
        return self.checkpointer.has_checkpoint() and name == f"{self.file_prefix}_final.pth"


class RememberedBatches:
    """Data loader that remembers its last batch."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.loader = loader
        self.last: Batch = ()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; raise RuntimeError, as the loader does otherwise, if a worker dies while it sends one."""
        try:
            for batch in self.loader:
                self.last = batch
                yield batch
        except (ConnectionError, EOFError) as error:
            raise RuntimeError("DataLoader worker exited while it sent a batch") from error


class _LossCheck:
    """Mixin of Detectron2's trainers that raises DivergenceError if a loss of this process is not finite."""

    data_loader: RememberedBatches
    iter: int

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
        values = dict(zip(loss_dict, torch.stack(list(loss_dict.values())).detach().cpu(), strict=True))
        faults = [f"{name} is {value.item()}" for name, value in values.items() if not value.isfinite()]
        if faults:
            images = ", ".join(str(sample.get("key", sample.get("file_name"))) for sample in self.data_loader.last)
            raise DivergenceError(
                f"iteration {self.iter}: {faults[0]}; images of the batch: {images}. Check their annotations by "
                "scripts/check_dataset.py, or use a smaller SOLVER.BASE_LR; the last checkpoint can be resumed from"
            )
        super()._write_metrics(values, *args, **kwargs)  # type: ignore[misc]


class CheckedTrainer(_LossCheck, SimpleTrainer):
    """Detectron2's SimpleTrainer with the check of the loss."""


class CheckedAMPTrainer(_LossCheck, AMPTrainer):
    """Detectron2's AMPTrainer with the check of the loss."""
