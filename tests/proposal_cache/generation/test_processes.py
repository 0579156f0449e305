import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

import pytest

from proposal_cache.generation.processes import process_pool


class CtrlC:
    """Sent to a process, it interrupts it there while it is being unpickled, before any initializer runs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _interrupt_me, (os.getpid(),)


def _interrupt_me(sender: int) -> int:
    if os.getpid() != sender:
        os.kill(os.getpid(), signal.SIGINT)
    return sender


def _keep(_: object) -> None:
    pass


def start_pool(work: str) -> subprocess.Popen[str]:
    """A process whose two workers have begun some work."""
    code = (
        "import time\nfrom proposal_cache.generation.processes import process_pool\nwith process_pool(2) as pool:\n"
        f" print(list(pool.map(abs, range(2))), flush=True)\n list({work})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    return process


def errors_of(process: subprocess.Popen[str]) -> str:
    """What it says until neither it nor a worker holds its stderr any more."""
    try:
        return process.communicate(timeout=20)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_worker_does_not_hear_ctrl_c_while_it_starts() -> None:
    with process_pool(1, _keep, (CtrlC(),)) as pool:
        assert pool.submit(abs, -1).result() == 1


def test_an_ordinary_worker_would(capfd: pytest.CaptureFixture[str]) -> None:
    with ProcessPoolExecutor(1, get_context("spawn"), _keep, (CtrlC(),)) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(abs, -1).result()
    assert "KeyboardInterrupt" in capfd.readouterr().err


def test_the_one_that_starts_them_still_hears_it() -> None:
    with process_pool(1) as pool:
        pool.submit(abs, -1).result()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("send", "number", "times"),
    [
        (os.kill, signal.SIGKILL, 1),
        (os.kill, signal.SIGTERM, 1),
        (os.killpg, signal.SIGINT, 1),
        (os.killpg, signal.SIGINT, 3),
    ],
)
def test_workers_end_with_the_one_that_started_them(send: Callable[[int, int], None], number: int, times: int) -> None:
    process = start_pool("pool.map(time.sleep, [60] * 4)")  # two in work, two waiting
    for _ in range(times):
        send(process.pid, number)
        time.sleep(0.1)
    assert "InvalidStateError" not in errors_of(process)


def test_a_worker_is_ended_while_it_sends() -> None:
    process = start_pool("pool.map(bytes, [100 << 20])")
    os.kill(process.pid, signal.SIGSTOP)  # so that nobody reads what the worker sends
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert "KeyboardInterrupt" in errors_of(process)
