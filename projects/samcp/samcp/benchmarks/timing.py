"""Clocks and memory counters for benchmarks on CPUs and GPUs."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class Stopwatch:
    """Seconds per stage, including the stage's work on a GPU."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the context to a stage."""
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        self.seconds[name] += time.perf_counter() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its seconds added to a stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call


def time_call(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, including its work on a GPU."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak(device: str) -> float:
    """Start measuring the peak memory of a device, by this process; return the MB in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def peak_mb(device: str) -> float:
    """Return the peak memory in MB since `reset_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    """Return a memory size of this process from Linux: VmRSS, current, or VmHWM, peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6
