"""Errors of multi-process launches."""

import os
import signal
import sys

import pytest
import torch.multiprocessing as mp

from samcp import launch as launch_module
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


def test_exit_message_is_printed_once(capfd):
    with pytest.raises(SystemExit) as stop:
        launch(end_with_message, 2, args=("error: no such dataset",))
    assert stop.value.code == 1
    lines = capfd.readouterr().err.strip().splitlines()
    # torch logs this line if the other process has not ended yet
    assert [line for line in lines if "Terminating process" not in line] == ["error: no such dataset"]
