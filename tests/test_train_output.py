"""Output of training and evaluation: console, log file, checkpoints, and images without patches."""

import re

import pytest
import torch

from proposal_cache import CacheWriter, PatchCache
from samcp.commands import train
from samcp.modeling.criterion import Criterion
from tests.test_train_net import arguments
from tests.toy_datasets import panoptic_dataset

NAME = "toy_train_net"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    with panoptic_dataset(root, NAME, count=4):
        yield root


@pytest.fixture(scope="module")
def patches_of_three(toy, tmp_path_factory):
    """Return a cache in which the generation of patches failed for image 002."""
    whole, folder = PatchCache(toy / "patches"), tmp_path_factory.mktemp("three") / "patches"
    with CacheWriter(folder, {"name": "toy"}, NAME) as writer:
        writer.add_failure("002", "the image is damaged")
        for key in ("001", "003", "004"):
            writer.add(key, whole[key])
    return folder


def test_console_has_few_lines_and_the_log_file_all(toy, tmp_path, capsys):
    train.run(arguments(toy, tmp_path, SOLVER__MAX_ITER=4))
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) < 40, printed
    for message in (str(tmp_path / "log.txt"), "Training on 4 images", "total_loss: ", "Results of the model"):
        assert message in printed
    log = (tmp_path / "log.txt").read_text()
    for message in ("Environment info", "Running with full config", "SAMCP(", "Per-category segm AP"):
        assert message in log, "is in the file"
        assert message not in printed, "is in the file only"
    assert "\x1b" not in log


def test_latest_checkpoints_are_kept(toy, tmp_path):
    keys = {
        "SOLVER__CHECKPOINT_PERIOD": 1,
        "SOLVER__CHECKPOINTS_KEPT": 2,
        "DATASETS__TEST": (),
        "DATASETS__PATCHES_TEST": (),
    }
    train.run(arguments(toy, tmp_path, SOLVER__MAX_ITER=5, **keys))
    assert checkpoints(tmp_path) == ["model_0000003.pth", "model_final.pth"], "that of the last iteration is the final"
    train.run(arguments(toy, tmp_path, "--resume", SOLVER__MAX_ITER=8, **keys))
    assert checkpoints(tmp_path) == ["model_0000006.pth", "model_final.pth"]


def test_all_checkpoints_are_kept(toy, tmp_path):
    keys = {"SOLVER__CHECKPOINT_PERIOD": 1, "DATASETS__TEST": (), "DATASETS__PATCHES_TEST": ()}
    train.run(arguments(toy, tmp_path, SOLVER__MAX_ITER=4, SOLVER__CHECKPOINTS_KEPT=0, **keys))
    assert checkpoints(tmp_path) == [*(f"model_000000{i}.pth" for i in range(3)), "model_final.pth"]


def test_resuming_keeps_files_that_the_training_did_not_write(toy, tmp_path):
    keys = {"SOLVER__CHECKPOINT_PERIOD": 1, "DATASETS__TEST": (), "DATASETS__PATCHES_TEST": ()}
    train.run(arguments(toy, tmp_path, SOLVER__MAX_ITER=2, SOLVER__CHECKPOINTS_KEPT=2, **keys))
    own = ["best.pth", "model_0000000_copy.pth", "model_best.pth"]
    for name in own:
        (tmp_path / name).write_bytes(b"of the user")
    train.run(arguments(toy, tmp_path, "--resume", SOLVER__MAX_ITER=4, SOLVER__CHECKPOINTS_KEPT=1, **keys))
    assert checkpoints(tmp_path) == [*own, "model_final.pth"]


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def test_loss_that_is_not_finite_names_the_images(toy, tmp_path, monkeypatch, capsys):
    compute = Criterion.__call__
    monkeypatch.setattr(
        Criterion, "__call__", lambda *args, **inputs: {k: v * torch.nan for k, v in compute(*args, **inputs).items()}
    )
    with pytest.raises(SystemExit) as stop:
        train.main(arguments(toy, tmp_path, SOLVER__IMS_PER_BATCH=2))
    message = str(stop.value)
    assert re.match(r"error: iteration 0: loss_\w+ is nan; images of the batch: 00\d, 00\d\. Check", message), message
    assert "Traceback" not in capsys.readouterr().out, "the error is printed once"
    assert not checkpoints(tmp_path)


class TestImagesWithoutPatches:
    """Images whose patches could not be generated are skipped in training, and count as missed in evaluation."""

    def test_count_as_missed_in_all_figures(self, toy, patches_of_three, tmp_path):
        oracle = {"TEST__ORACLE": True, "MODEL__SAMCP__TEST__PROMPTS_ON": True}
        whole = train.run(arguments(toy, tmp_path / "whole", "--eval-only", **oracle))
        missed = {"DATASETS__PATCHES_TEST": f"('{patches_of_three}',)", **oracle}
        found = train.run(arguments(toy, tmp_path / "three", "--eval-only", **missed))
        assert found["panoptic_seg"]["RQ"] < 0.9 * whole["panoptic_seg"]["RQ"]
        assert found["segm"]["AP"] < 0.9 * whole["segm"]["AP"]
        assert found["sem_seg"]["mIoU"] < 0.9 * whole["sem_seg"]["mIoU"]
        assert found["prompt_1"]["accuracy"] == whole["prompt_1"]["accuracy"], "is per patch"
        log = (tmp_path / "three" / "log.txt").read_text()
        assert re.search(NAME + r": 1 images count as missed, .*002\.jpg: the image is damaged", log)

    def test_a_damaged_image_is_not_read(self, patches_of_three, tmp_path):
        with panoptic_dataset(tmp_path / "data", NAME, count=4):
            (tmp_path / "data" / "images" / "002.jpg").write_bytes(b"no image")
            patches = f"('{patches_of_three}',)"
            keys = {"DATASETS__PATCHES_TRAIN": patches, "DATASETS__PATCHES_TEST": patches}
            train.run(arguments(tmp_path / "data", tmp_path / "run", **keys))
        log = (tmp_path / "run" / "log.txt").read_text()
        assert re.search(NAME + r": 1 images are skipped, .*002\.jpg: the image is damaged", log)

    def test_are_no_images_of_the_report(self, toy, patches_of_three, tmp_path):
        keys = {"DATASETS__PATCHES_TEST": f"('{patches_of_three}',)", "TEST__REPORT": True}
        train.run(arguments(toy, tmp_path, **keys))
        assert "<h2>The 3 images" in (tmp_path / "report.html").read_text()

    @pytest.mark.parametrize("options", [(), ("--eval-only",)])
    def test_strict_stops(self, toy, patches_of_three, tmp_path, options):
        keys = {"DATASETS__PATCHES_TEST": f"('{patches_of_three}',)", "TEST__ORACLE": bool(options)}
        message = r"lacks 1 of the 4 images of toy_train_net: 002 \(the first failed: the image is damaged\)"
        with pytest.raises(SystemExit, match=message):
            train.main(arguments(toy, tmp_path, "--strict", *options, **keys))
