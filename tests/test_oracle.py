"""The chain from drawn images to the evaluators, without a network in it: patches, cache, mapper, G, inference."""

import json
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
import train_net
from detectron2.utils import comm

from samcp.data.datasets.synthetic.register import register_synthetic

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "miniature" / "demo.yaml"


def options(synthetic, output):
    """Of an evaluation of the oracle on the validation split."""
    overrides = [
        *("DATASETS.PATCHES_TRAIN", repr((str(synthetic.train_patches),))),
        *("DATASETS.PATCHES_TEST", repr((str(synthetic.val_patches),))),
        *("OUTPUT_DIR", str(output)),
        *("TEST.ORACLE", "True"),
    ]
    return ["--config-file", str(CONFIG), "--eval-only", *overrides]


@pytest.fixture
def results(synthetic, tmp_path):
    """The oracle's figures."""
    return train_net.run(train_net.argument_parser().parse_args(options(synthetic, tmp_path / "oracle")))


def test_figures_of_region_patches_merged_by_the_ground_truth(results):
    """Region patches follow the sharp edges of drawn shapes: every segment is found, and only borders differ."""
    measured = {
        ("panoptic_seg", "PQ"): 93.8,
        ("panoptic_seg", "PQ_th"): 91.0,
        ("panoptic_seg", "PQ_st"): 99.5,
        ("segm", "AP"): 65.2,
        ("bbox", "AP"): 71.2,
        ("sem_seg", "mIoU"): 94.6,
    }
    assert {(task, name): results[task][name] for task, name in measured} == pytest.approx(measured, abs=0.5)
    assert results["panoptic_seg"]["RQ"] == results["segm"]["AP50"] == pytest.approx(100)


def work(rank, folder, scenes, arguments):
    """One of two processes that have a half of the images each."""
    register_synthetic(scenes)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    found = train_net.run(train_net.argument_parser().parse_args(arguments))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_find_what_one_finds(synthetic, results, tmp_path):
    arguments = options(synthetic, tmp_path / "two")
    torch.multiprocessing.spawn(work, (tmp_path, synthetic.folder, arguments), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert not found[1], "only the first process has figures"
    assert found[0].keys() == results.keys()
    for task, figures in results.items():
        assert found[0][task] == pytest.approx(figures, nan_ok=True), task
