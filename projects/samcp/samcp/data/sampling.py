"""Order of training samples, which a resumed training continues exactly.

Batches and the random numbers of augmentations are functions of a seed and of a sample's position, not of the state of
generators: a run that continues after n iterations draws what an undisturbed run draws, with any number of workers.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from samcp.errors import UsageError

Record = Mapping[str, Any]
Draw = tuple[int, int]  # seed of the augmentation, index of the record

_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


class TrainingBatches(Sampler[list[Draw]]):
    """Infinite batches of this rank.

    Attributes:
        seed: of order and augmentations; the same in all ranks.
        start: number of batches to skip, those of a training that is resumed.
    """

    def __init__(
        self, sampler: Callable[[int], Sampler[int]], batch_size: int, seed: int, groups: Sequence[Any] | None = None
    ) -> None:
        """
        Args:
            sampler: seed -> Detectron2's infinite sampler, which draws the indices of this rank.
            batch_size: number of samples per batch of this rank.
            seed: initial value of the attribute.
            groups: one value per record, only records with the same value form a batch; None to ignore it.
        """
        self.seed = seed
        self.start = 0
        self._sampler = sampler
        self._batch_size = batch_size
        self._groups = groups

    def __iter__(self) -> Iterator[list[Draw]]:
        rank = comm.get_rank()
        for batch in islice(self._batches(), self.start, None):
            yield [(combine_seeds(self.seed, rank, position), index) for position, index in batch]

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of positions in the order of this rank and indices of records, from the first one on."""
        waiting: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        for position, index in enumerate(self._sampler(self.seed)):
            batch = waiting[self._groups[index] if self._groups else None]
            batch.append((position, index))
            if len(batch) == self._batch_size:
                yield list(batch)
                batch.clear()


class MappedRecords(Dataset[Any]):
    """Dataset of mapped records, whose augmentation depends on the seed of a draw only.

    Args:
        records: of Detectron2; stored in one buffer, which worker processes share.
        mapper: record -> sample.
    """

    def __init__(self, records: list[Any], mapper: Callable[[Record], Any]) -> None:
        self._records = DatasetFromList(records, copy=False)
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, draw: Draw) -> Any:
        seed, index = draw
        with _seeded(seed):
            return self._mapper(self._records[index])


def build_sampler(cfg: CfgNode, records: Sequence[Record]) -> Callable[[int], Sampler[int]]:
    """Return a function that builds the sampler of DATALOADER.SAMPLER_TRAIN from a seed.

    Raises:
        UsageError: another sampler is named, or images are to be repeated by their classes but have label maps only.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in _SAMPLERS:
        raise UsageError(f"DATALOADER.SAMPLER_TRAIN is {name!r}; supported are {' and '.join(_SAMPLERS)}")
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(len(records), seed=seed)
    segments = [record.get("segments_info", record.get("annotations")) for record in records]
    if None in segments:
        raise UsageError(f"DATALOADER.SAMPLER_TRAIN {name} needs annotations with classes, not label maps")
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        [{"annotations": listed} for listed in segments],
        cfg.DATALOADER.REPEAT_THRESHOLD,
        sqrt=cfg.DATALOADER.REPEAT_SQRT,
    )
    return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)


def combine_seeds(*numbers: int) -> int:
    """Return a seed that depends on all of the non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers of Python, NumPy and PyTorch on the CPU within the block."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
