"""Faults of a training: each ends with one clear message, and the last checkpoint is whole and can be resumed from."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info
from torch.utils.tensorboard import SummaryWriter

from proposal_cache import CacheWriter, PatchCache
from proposal_cache.errors import StorageError
from samcp.commands import train
from samcp.data.dataset_mapper import SAMCPDatasetMapper
from samcp.modeling.criterion import Criterion
from tests.faults.conditions import disk_full, interrupt
from tests.test_train_net import arguments
from tests.toy_datasets import panoptic_dataset

NAME = "toy_train_net"
SETTINGS = {
    "DATASETS__TEST": (),
    "DATASETS__PATCHES_TEST": (),
    "INPUT__MIN_SIZE_TRAIN": (48,),
    "SOLVER__MAX_ITER": 5,
    "SOLVER__CHECKPOINT_PERIOD": 1,
    "SOLVER__CHECKPOINTS_KEPT": 2,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("toy")
    with panoptic_dataset(root, NAME):
        yield root


def run(toy: Path, output: Path, *options: str, **changes: object) -> None:
    train.main(arguments(toy, output, *options, **{**SETTINGS, **changes}))


def run_with_fault(toy: Path, output: Path, **changes: object) -> str:
    """Run a training that fails, check that it continues without the fault, and return its message."""
    with pytest.raises(SystemExit) as stop:
        run(toy, output, **changes)
    assert "Traceback" not in str(stop.value)
    assert not list(output.glob("*.tmp"))
    assert (output / "last_checkpoint").read_text().startswith("model_000000")
    return str(stop.value)


def assert_equal(output: Path, other: Path) -> None:
    one, two = (torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (output, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def in_iteration(number: int, action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something before the losses of an iteration are computed, counted from 0."""
    compute, calls = Criterion.__call__, iter(range(1000))

    def call(*values: Any, **inputs: Any) -> Any:
        losses = compute(*values, **inputs)
        return action() or losses if next(calls) == number else losses

    monkeypatch.setattr(Criterion, "__call__", call)


@pytest.fixture(scope="module")
def undisturbed(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    run(toy, output)
    return output


def test_killed_loader_worker(toy: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, images = SAMCPDatasetMapper.__call__, iter(range(1000))

    def die(self: SAMCPDatasetMapper, record: Any) -> Any:
        if get_worker_info() is not None and next(images) == 4:  # of the third batch; two are drawn in advance
            while not (tmp_path / "last_checkpoint").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(SAMCPDatasetMapper, "__call__", die)
        message = run_with_fault(toy, tmp_path, DATALOADER__NUM_WORKERS=1)
    assert re.match(r"error: DataLoader worker .*(is killed by signal: Killed|exited)", message)  # as it is noticed
    assert ". Unless you sent the signal, the likely cause is that memory ran out" in message
    assert message.endswith("--resume continues from the last checkpoint")
    run(toy, tmp_path, "--resume", DATALOADER__NUM_WORKERS=1)
    assert_equal(tmp_path, undisturbed)


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, None], ids=["eof", "reset", "noticed"])
def test_loader_worker_killed_in_an_evaluation(
    toy: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    parent = os.getpid()

    def die(self: SAMCPDatasetMapper, record: Any) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        raise error if error else AssertionError("there is no worker")

    monkeypatch.setattr(SAMCPDatasetMapper, "__call__", die)
    settings = {"MODEL__WEIGHTS": undisturbed / "model_final.pth", "DATALOADER__NUM_WORKERS": 0 if error else 1}
    with pytest.raises(SystemExit) as stop:
        train.main(arguments(toy, tmp_path, "--eval-only", **settings))
    assert re.match(r"error: DataLoader worker .*(is killed by signal: Killed|exited)", str(stop.value))
    assert "--resume" not in str(stop.value)


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(
    toy: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        in_iteration(2, lambda: {"loss_mask": torch.tensor(torch.nan, requires_grad=True)}, patch)
        message = run_with_fault(toy, tmp_path)
    assert message.startswith("error: iteration 2: loss_mask is nan; images of the batch: 00")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    run(toy, tmp_path, "--resume")
    assert_equal(tmp_path, undisturbed)


def test_shard_that_vanishes_in_an_epoch(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "patches"
    write_shards(toy, cache)
    settings = {
        "DATASETS__PATCHES_TRAIN": f"('{cache}',)",
        "DATALOADER__ASPECT_RATIO_GROUPING": False,  # which reads all shards at the start
        "DATALOADER__NUM_WORKERS": 1,
    }
    run(toy, tmp_path / "undisturbed", **settings)
    read, images = SAMCPDatasetMapper.__call__, iter(range(1000))

    def lose(self: SAMCPDatasetMapper, record: Any) -> Any:
        if next(images) == 2:  # after the first batch
            while not (tmp_path / "run" / "last_checkpoint").exists():
                time.sleep(0.01)
            (cache / shard_of(record["key"])).unlink(missing_ok=True)
        return read(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(SAMCPDatasetMapper, "__call__", lose)
        message = run_with_fault(toy, tmp_path / "run", **settings)
    assert message.startswith(f"error: {cache}/shard-r000-0000")
    assert "No such file or directory, but manifest.json names it; copy it there again, or repeat the" in message
    write_shards(toy, cache)  # the fix that the message names
    run(toy, tmp_path / "run", "--resume", **settings)
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")


def write_shards(toy: Path, cache: Path) -> None:
    """Write a cache with one image per shard, or the images that are missing in it."""
    whole = PatchCache(toy / "patches")
    with CacheWriter(cache, {"name": "toy"}, NAME, shard_size=1) as writer:
        for key in whole:
            if key not in writer.done:
                writer.add(key, whole[key])


def shard_of(key: str) -> str:
    return f"shard-r000-{int(key) - 1:05d}.h5"  # keys are 001, 002, ...


def test_full_disk(toy: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, contextlib.ExitStack() as limit:
        in_iteration(2, lambda: limit.enter_context(disk_full()), patch)
        message = run_with_fault(toy, tmp_path)
    assert message.startswith(f"error: {tmp_path}/model_0000002.pth cannot be written: File too large")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    run(toy, tmp_path, "--resume")
    assert_equal(tmp_path, undisturbed)


def test_thread_on_full_disk_prints_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard writes in a thread, and raises its error in the main thread afterwards."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    with pytest.raises(StorageError, match=f"{tmp_path} cannot be written: File too large; free space"):
        write_events(tmp_path)
    assert capsys.readouterr().err == ""


def write_events(folder: Path) -> None:
    with train.naming_full_disk(str(folder)), disk_full():
        events = SummaryWriter(str(folder))
        for step in range(100):
            events.add_text("text", "a" * 1000, step)
            events.flush()


def test_ctrl_c(toy: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        in_iteration(3, interrupt, patch)
        message = run_with_fault(toy, tmp_path)
    assert message == "interrupted; --resume continues from the last checkpoint"
    run(toy, tmp_path, "--resume")
    assert_equal(tmp_path, undisturbed)


def test_killed_while_a_checkpoint_is_written(toy: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The incomplete file is deleted, and no checkpoint is kept for longer because of the kill."""
    run(toy, tmp_path, SOLVER__MAX_ITER=3)
    (tmp_path / "model_0000003.pth.0123.tmp").write_bytes(b"half")
    (tmp_path / "model_0000003.pth").write_bytes(b"whole, but last_checkpoint was not written")
    run(toy, tmp_path, "--resume")
    assert sorted(path.name for path in tmp_path.glob("*.pth*")) == ["model_0000003.pth", "model_final.pth"]
    assert_equal(tmp_path, undisturbed)


def test_killed_before_the_final_checkpoint(toy: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The checkpoint of the last iteration exists; the resumed training only copies it."""
    for iterations in (4, 5):
        run(toy, tmp_path, "--resume", SOLVER__MAX_ITER=iterations, SOLVER__CHECKPOINT_PERIOD=iterations)
    (tmp_path / "model_final.pth").rename(tmp_path / "model_0000004.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")
    run(toy, tmp_path, "--resume", SOLVER__CHECKPOINTS_KEPT=1)
    assert [path.name for path in tmp_path.glob("*.pth*")] == ["model_final.pth"]
    assert_equal(tmp_path, undisturbed)


class TestDeterministic:
    """--deterministic repeats a training bit for bit."""

    @pytest.fixture(autouse=True)
    def _restore(self) -> Iterator[None]:
        yield
        torch.use_deterministic_algorithms(False)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_two_runs_are_equal(self, toy: Path, tmp_path: Path, workers: int) -> None:
        settings = {"SEED": -1, "SOLVER__MAX_ITER": 3, "INPUT__CROP__ENABLED": True, "INPUT__COLOR_AUG_SSD": True}
        settings["DATALOADER__NUM_WORKERS"] = workers
        for name in ("one", "two"):
            run(toy, tmp_path / name, "--deterministic", **settings)
        assert_equal(tmp_path / "one", tmp_path / "two")
        assert torch.are_deterministic_algorithms_enabled()

    def test_the_seed_may_be_given(self, toy: Path, tmp_path: Path) -> None:
        for seed in (-1, 0, 7):
            run(toy, tmp_path / str(seed), "--deterministic", SEED=seed, SOLVER__MAX_ITER=1)
        assert_equal(tmp_path / "-1", tmp_path / "0")
        with pytest.raises(AssertionError):
            assert_equal(tmp_path / "7", tmp_path / "0")
