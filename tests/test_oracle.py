"""The chain from drawn images to the evaluators, without a network in it: patches, cache, mapper, G, inference."""

from pathlib import Path

import pytest
import train_net

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "miniature" / "demo.yaml"


@pytest.fixture
def results(synthetic, tmp_path):
    """The oracle's figures on the validation split."""
    overrides = [
        *("DATASETS.PATCHES_TRAIN", repr((str(synthetic.train_patches),))),
        *("DATASETS.PATCHES_TEST", repr((str(synthetic.val_patches),))),
        *("OUTPUT_DIR", str(tmp_path / "oracle")),
        *("TEST.ORACLE", "True"),
    ]
    options = ["--config-file", str(CONFIG), "--eval-only", *overrides]
    return train_net.run(train_net.argument_parser().parse_args(options))


def test_region_patches_joined_by_the_ground_truth_come_close_to_it(results):
    """Drawn shapes have sharp edges, which region patches follow: what is missing here, a step between has lost."""
    panoptic = results["panoptic_seg"]
    assert panoptic["PQ"] > 80
    assert panoptic["PQ_th"] > 70
    assert panoptic["PQ_st"] > 85
    assert results["segm"]["AP"] > 60
    assert results["bbox"]["AP"] > 60
    assert results["sem_seg"]["mIoU"] > 85
    assert max(panoptic["PQ"], results["segm"]["AP"], results["sem_seg"]["mIoU"]) <= 100
