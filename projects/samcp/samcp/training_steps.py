"""Parts of the trainer's loop: checkpoints on disk, and the check of the loss."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.engine.hooks import PeriodicCheckpointer
from torch import Tensor

from proposal_cache.store.durable import remove
from samcp.errors import DivergenceError

Batch = Sequence[Mapping[str, Any]]


class CheckpointHook(PeriodicCheckpointer):
    """Periodic checkpoints, of which the latest `max_to_keep` stay on disk, and model_final.pth."""

    def before_train(self) -> None:
        """Count the checkpoints of a training that is resumed, so that they are deleted in their turn.

        Incomplete files of a training that was killed while it wrote a checkpoint are deleted now.
        """
        super().before_train()
        if self.trainer.start_iter:
            last = f"{self.file_prefix}_{self.trainer.start_iter - 1:07d}.pth"  # later ones are written again
            files = sorted(map(Path, self.checkpointer.get_all_checkpoint_files()))
            self.recent_checkpoints = [str(file) for file in files if file.name <= last]
        if self.checkpointer.save_to_disk:
            for incomplete in Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_*.pth.*.tmp"):
                remove(incomplete)

    def after_train(self) -> None:
        """Delete the checkpoint of the last iteration, which model_final.pth is a copy of."""
        last = f"{self.file_prefix}_{self.max_iter - 1:07d}.pth"
        is_complete = self.checkpointer.has_checkpoint() and self.checkpointer.get_checkpoint_file().endswith(
            f"{self.file_prefix}_final.pth"
        )
        for file in self.recent_checkpoints:
            if is_complete and file.endswith(last) and self.path_manager.exists(file):
                self.path_manager.rm(file)


class RememberedBatches:
    """Data loader that remembers its last batch."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self.loader = loader
        self.last: Batch = ()

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            self.last = batch
            yield batch


class _LossCheck:
    """Mixin of Detectron2's trainers that raises DivergenceError if a loss of this process is not finite."""

    data_loader: RememberedBatches
    iter: int

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
        values = {name: value.item() for name, value in loss_dict.items()}
        faults = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if faults:
            images = ", ".join(str(sample.get("key", sample.get("file_name"))) for sample in self.data_loader.last)
            raise DivergenceError(
                f"iteration {self.iter}: {faults[0]}; images of the batch: {images}. Check their annotations by "
                "scripts/check_dataset.py, or use a smaller SOLVER.BASE_LR; the last checkpoint can be resumed from"
            )
        super()._write_metrics(loss_dict, *args, **kwargs)  # type: ignore[misc]


class CheckedTrainer(_LossCheck, SimpleTrainer):
    """Detectron2's SimpleTrainer with the check of the loss."""


class CheckedAMPTrainer(_LossCheck, AMPTrainer):
    """Detectron2's AMPTrainer with the check of the loss."""
