"""Oracle evaluation end to end, without a network: patches, cache, mapper, affinity targets, inference."""

import json
from pathlib import Path

import pytest

from samcp.command_line import training_parser
from samcp.commands import train
from samcp.data.datasets.synthetic.register import register_synthetic
from tests.processes import run_in_two_processes

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "miniature" / "demo.yaml"


def options(synthetic, output):
    """Return command-line options that evaluate the oracle on the validation split."""
    overrides = [
        *("DATASETS.PATCHES_TRAIN", repr((str(synthetic.train_patches),))),
        *("DATASETS.PATCHES_TEST", repr((str(synthetic.val_patches),))),
        *("OUTPUT_DIR", str(output)),
        *("TEST.ORACLE", "True"),
    ]
    return ["--config-file", str(CONFIG), "--eval-only", *overrides]


@pytest.fixture
def results(synthetic, tmp_path):
    """Return the metrics of the oracle."""
    return train.run(training_parser(None).parse_args(options(synthetic, tmp_path / "oracle")))


def test_oracle_metrics_of_contour_patches(results):
    """Contour patches follow the edges of drawn shapes: all segments are found, with errors at boundaries only."""
    measured = {
        ("panoptic_seg", "PQ"): 97.0,
        ("panoptic_seg", "PQ_th"): 95.8,
        ("panoptic_seg", "PQ_st"): 99.4,
        ("segm", "AP"): 91.0,
        ("bbox", "AP"): 92.1,
        ("sem_seg", "mIoU"): 97.3,
    }
    assert {(task, name): results[task][name] for task, name in measured} == pytest.approx(measured, abs=0.5)
    assert results["panoptic_seg"]["RQ"] == results["segm"]["AP50"] == pytest.approx(100)


def work(rank, folder, scenes, arguments):
    """Evaluate half of the images in one of two processes."""
    register_synthetic(scenes)
    found = train.run(training_parser(None).parse_args(arguments))
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_two_processes_equal_one_process(synthetic, results, tmp_path):
    arguments = options(synthetic, tmp_path / "two")
    run_in_two_processes(work, tmp_path, synthetic.folder, arguments)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert not found[1], "only rank 0 returns metrics"
    assert found[0].keys() == results.keys()
    for task, metrics in results.items():
        assert found[0][task] == pytest.approx(metrics, nan_ok=True), task
