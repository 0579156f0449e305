"""Errors of multi-process launches."""

import os
import signal
import sys

import pytest
import torch
import torch.multiprocessing as mp

from samcp import launch as launch_module
from samcp.command_line import training_parser
from samcp.commands import train
from samcp.launch import launch


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch):
    """Fork processes instead of spawning them, without a process group."""

    def start(main, count, *, args):
        mp.start_processes(lambda rank: main(rank, *args), nprocs=count, start_method="fork")

    monkeypatch.setattr(launch_module, "detectron2_launch", start)


def end_by_signal(rank, number):
    if rank == 1:
        os.kill(os.getpid(), number)


def end_with_message(rank, message):
    if rank == 1:
        sys.exit(message)


def test_killed_process_has_an_error_message():
    """For example, if the system kills a process that exceeds the memory."""
    message = r"error: process 1 terminated with signal SIGKILL.* memory ran out.*DATALOADER.NUM_WORKERS"
    with pytest.raises(SystemExit, match=message):
        launch(end_by_signal, 2, args=(signal.SIGKILL,))


@pytest.mark.parametrize(
    ("processes", "machines", "message"),
    [
        (8, {}, r"--num-gpus 8: PyTorch sees 4 GPUs on this machine"),
        (1, {"num_machines": 2, "dist_url": "auto"}, r"--dist-url auto: other machines cannot reach it"),
        (
            1,
            {"num_machines": 2, "dist_url": "tcp://127.0.0.1:5000"},
            r"--dist-url tcp://127.0.0.1:5000: other machines",
        ),
        (1, {"num_machines": 2, "machine_rank": 2, "dist_url": "tcp://a:1"}, r"--machine-rank 2: must be 0 to 1"),
    ],
)
def test_impossible_launches_are_one_line(monkeypatch, processes, machines, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(SystemExit, match=f"error: {message}"):
        launch(print, processes, args=(), **machines)


def test_processes_on_the_cpu_do_not_use_nccl(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = []
    monkeypatch.setattr(train, "launch", lambda *args, **options: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    parser = training_parser("")
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        options = ["--config-file", "miniature/demo", "--num-gpus", "2", "MODEL.DEVICE", device]
        train.main(parser.parse_args(options))
    assert seen == ["", "0,1"]


def test_memory_of_a_gpu_runs_out(monkeypatch):
    def fail(arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines.")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(SystemExit, match=r"error: CUDA out of memory. Tried .* SOLVER.IMS_PER_BATCH.*; --resume"):
        train.run_process(training_parser("").parse_args(["--config-file", "x"]))


def test_exit_message_is_printed_once(capfd):
    with pytest.raises(SystemExit) as stop:
        launch(end_with_message, 2, args=("error: no such dataset",))
    assert stop.value.code == 1
    lines = capfd.readouterr().err.strip().splitlines()
    # torch logs this line if the other process has not ended yet
    assert [line for line in lines if "Terminating process" not in line] == ["error: no such dataset"]
