import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import pytest

from proposal_cache.processes import process_pool


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
