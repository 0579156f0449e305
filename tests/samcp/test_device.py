"""The trainer in half precision, which needs a GPU."""

from pathlib import Path

import pytest

from tests.device import needs_gpu


@needs_gpu
def test_trainer_in_half_precision(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the trainer writes its logs with tensorboard")
    from samcp.commands import train
    from tests.test_train_net import arguments
    from tests.toy_datasets import panoptic_dataset

    with panoptic_dataset(tmp_path / "toy", "toy_train_net", count=4):
        train.main(arguments(tmp_path / "toy", tmp_path / "run", MODEL__DEVICE="cuda", SOLVER__AMP__ENABLED=True))
    assert (tmp_path / "run" / "model_final.pth").exists()
