"""Order and augmentation of training samples depend on the seed only."""

import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from samcp.data.sampling import MappedRecords, TrainingBatches, build_sampler
from samcp.errors import UsageError

RECORDS = [{"file_name": f"{i}.jpg", "segments_info": [{"category_id": int(i == 3)}]} for i in range(10)]


def batches(start=0, groups=None, seed=5):
    found = TrainingBatches(lambda seed: TrainingSampler(len(RECORDS), seed=seed), 2, seed, groups)
    found.start = start
    return found


def first(count, found):
    return [batch for batch, _ in zip(found, range(count), strict=False)]


@pytest.mark.parametrize("groups", [None, [i % 3 == 0 for i in range(10)]])
def test_batches_continue_from_any_iteration(groups):
    """Also where samples wait for others of the same shape."""
    assert first(8, batches(7, groups)) == first(15, batches(0, groups))[7:]
    assert first(8, batches(0, groups, seed=6)) != first(8, batches(0, groups))


def test_batches_have_one_group_and_every_record():
    groups = [i % 3 == 0 for i in range(10)]
    drawn = [[index for _, index in batch] for batch in first(15, batches(0, groups))]
    assert all(len({groups[index] for index in batch}) == 1 for batch in drawn)
    assert {index for batch in drawn for index in batch} == set(range(10))


def test_ranks_draw_different_samples(monkeypatch):
    drawn, seeds = [], set()
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        draws = [draw for batch in first(5, batches()) for draw in batch]
        drawn.append([index for _, index in draws][:5])
        seeds |= {seed for seed, _ in draws}
    assert sorted(drawn[0] + drawn[1]) == list(range(10)), "one epoch"
    assert len(seeds) == 20, "no two samples may have the same augmentation"


def random_numbers(record):
    return record["file_name"], random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize("workers", [1, 3])
def test_samples_do_not_depend_on_the_number_of_workers(workers):
    dataset = MappedRecords(RECORDS, random_numbers)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=batches(), num_workers=workers, collate_fn=trivial_batch_collator
    )
    torch.manual_seed(workers)
    expected = [[dataset[draw] for draw in batch] for batch in first(6, batches())]
    assert first(6, loader) == expected
    assert len({numbers[1] for batch in expected for numbers in batch}) == 12


def test_drawing_a_sample_leaves_the_random_numbers_of_the_model_unchanged():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    MappedRecords(RECORDS, random_numbers)[7, 2]
    assert torch.rand(1) == expected


def test_images_with_rare_classes_are_repeated():
    cfg = get_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 0.9
    sampler = build_sampler(cfg, RECORDS)(0)
    counts = np.bincount([index for index, _ in zip(sampler, range(1200), strict=False)], minlength=10)
    assert counts[3] == pytest.approx(300, rel=0.1), "a class in 1 of 10 images, repeated by the root of 0.9 / 0.1"
    with pytest.raises(UsageError, match="needs annotations with classes, not label maps"):
        build_sampler(cfg, [{"sem_seg_file_name": "0.png"}])
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    with pytest.raises(UsageError, match="'RandomSubsetTrainingSampler'; supported are TrainingSampler and"):
        build_sampler(cfg, RECORDS)
