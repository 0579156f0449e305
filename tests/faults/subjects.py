"""Small programs to kill: generation of a cache, and a training."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from PIL import Image

from proposal_cache import cli
from proposal_cache.generators import contours  # noqa: F401  (imported on use otherwise, in each run)
from proposal_cache.store.finalize import shard_files
from proposal_cache.store.shard import Shard
from proposal_cache.torch_files import read_torch_file
from samcp.command_line import training_parser
from samcp.commands import train
from samcp.trainer import Trainer
from tests.proposal_cache.generation.fakes import content

_IMAGES, _ITERATIONS, _PERIOD = 24, 10, 2


class Generation:
    """`proposal-cache generate` with the generator `contours`, on tiny images.

    Args:
        folder: for the images, which are written now.
    """

    def __init__(self, folder: Path) -> None:
        self._images = folder / "images"
        self._images.mkdir(parents=True)
        random = np.random.default_rng(0)
        for i in range(_IMAGES):
            blocks = random.integers(0, 256, (3, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(blocks).save(self._images / f"{i:02}.png")

    def run(self, output: Path) -> None:
        options = ["--generator", "contours", "--parts", "4", "--patches", "8", "--shard-size", "2"]
        cli.main(["generate", "--images", str(self._images), "--output", str(output), *options])

    def complete(self, output: Path) -> list[bytes]:
        """Return the keys in all shards, whose checksums are compared."""
        keys = []
        for path in shard_files(output) if output.exists() else []:
            shard = Shard.open(path)
            for column in shard.file.columns:
                shard.file.check(column)
            keys += shard.read_keys()
        return keys

    def result(self, output: Path) -> Any:
        if list(output.glob("*.tmp")):
            return "temporary files are left"
        return content(output)


@dataclass(frozen=True)
class Training:
    """`train_net.py --resume` with the miniature model on a registered toy dataset."""

    dataset: str
    patches: Path
    workers: int  # of the data loader

    def run(self, output: Path) -> None:
        train.Trainer = _Recorded  # type: ignore[attr-defined]
        train.main(self.arguments(output))

    def arguments(self, output: Path) -> argparse.Namespace:
        """Return the command line."""
        settings = {
            "DATASETS.TRAIN": (self.dataset,),
            "DATASETS.PATCHES_TRAIN": (str(self.patches),),
            "DATASETS.TEST": (),
            "DATASETS.PATCHES_TEST": (),
            "DATALOADER.NUM_WORKERS": self.workers,
            "INPUT.MIN_SIZE_TRAIN": (48, 64),
            "INPUT.CROP.ENABLED": True,
            "SOLVER.MAX_ITER": _ITERATIONS,
            "SOLVER.CHECKPOINT_PERIOD": _PERIOD,
            "SOLVER.CHECKPOINTS_KEPT": 1,
            "TEST.REPORT": False,
            "SEED": 3,
            "OUTPUT_DIR": output,
        }
        flat = [str(part) for item in settings.items() for part in item]
        return training_parser(None).parse_args(["--config-file", "miniature/panoptic", "--resume", *flat])

    def complete(self, output: Path) -> list[int]:
        """Return the iterations before the last checkpoint, which is read with its checksums."""
        if not (output / "last_checkpoint").exists():
            return []
        checkpoint = read_torch_file(output / (output / "last_checkpoint").read_text())
        return list(range(checkpoint["iteration"] + 1))

    def result(self, output: Path) -> Any:
        """Return all losses of all runs by iteration, and the files and tensors at the end."""
        model = read_torch_file(output / "model_final.pth")["model"]
        files = sorted(path.name for path in output.glob("*.pth*"))
        return self.losses(output), files, {name: tensor.numpy().tobytes() for name, tensor in model.items()}

    @staticmethod
    def losses(output: Path) -> dict[int, set[str]]:
        """Return the different losses of each iteration, as hexadecimal digits."""
        losses: dict[int, set[str]] = {}
        for line in (output / "losses.txt").read_text().splitlines():
            iteration, loss = line.split()
            losses.setdefault(int(iteration), set()).add(loss)
        return losses


class _Recorded(Trainer):
    """Trainer that appends the exact loss of each iteration to losses.txt."""

    def build_hooks(self) -> list[HookBase]:
        return [_Losses(), *super().build_hooks()]


class _Losses(HookBase):
    def after_step(self) -> None:
        trainer: Any = self.trainer
        loss, _ = trainer.storage.latest()["total_loss"]
        line = f"{trainer.iter} {float(loss).hex()}\n"
        file = os.open(Path(trainer.cfg.OUTPUT_DIR, "losses.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)


def use_one_thread() -> None:
    """Avoid threads, which a fork would lose."""
    torch.set_num_threads(1)
