"""Random SIGKILLs of a program that is started again until it ends; the result must be that of an undisturbed run.

Each run is a fork of a process that has imported everything, so that kills fall into the work and not into imports.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_LONGEST = 1.2  # of the delays before a kill, relative to the time of an undisturbed run


class Subject(Protocol):
    """Program that continues when it is started again with the same output folder."""

    def run(self, output: Path) -> None:
        """Run the program in this process, a fork, until its work is done."""

    def complete(self, output: Path) -> Iterable[Any]:
        """Return all that counts as complete work; raise an exception if some of it is damaged."""

    def result(self, output: Path) -> Any:
        """Return the result to compare, from the output of a run that ended."""


def kill_at_random(subject: Subject, folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill runs of a program at random until there were so many kills.

    Returns:
        "kills"; "finished": runs that ended, after some kills or none; and faults, which must be 0: "failed": runs that
        ended with an error; "damaged", "lost": complete work, after a kill; "other result".
    """
    random, counts = np.random.default_rng(seed), Counter[str]()
    started = time.monotonic()
    if run_until(subject, folder / "undisturbed", None) != 0:
        log = (folder / "undisturbed.log").read_text()
        raise RuntimeError(f"the undisturbed run failed: {log}")
    seconds = time.monotonic() - started
    expected = subject.result(folder / "undisturbed")
    while counts["kills"] < kills:
        output = folder / f"run {counts['finished'] + counts['failed']}"
        delays = [*random.uniform(0, _LONGEST * seconds, kills - counts["kills"]), None]
        before, started = counts["kills"], time.monotonic()
        counts["finished" if _kill_until_it_ends(subject, output, delays, counts) == 0 else "failed"] += 1
        if counts["kills"] == before:  # the first run may have been slower, on a busy machine
            seconds = min(seconds, time.monotonic() - started)
        try:
            counts["other result"] += subject.result(output) != expected
        except (ValueError, OSError):
            counts["other result"] += 1
    return counts


def _kill_until_it_ends(
    subject: Subject, output: Path, delays: Sequence[float | None], counts: Counter[str]
) -> int | None:
    """Start and kill a program after each delay until it ends; count kills and faults, and return its exit status."""
    before: set[Any] = set()
    status = None
    for delay in delays:
        status = run_until(subject, output, delay)
        if status != -signal.SIGKILL:
            break
        counts["kills"] += 1
        try:
            after = set(subject.complete(output))
        except (ValueError, OSError):
            counts["damaged"] += 1
        else:
            counts["lost"] += len(before - after)
            before = after
    return status


def run_until(subject: Subject, output: Path, delay: float | None) -> int:
    """Run a program in a child, kill it after a delay in seconds unless it is None, and return the exit status."""
    child = get_context("fork").Process(target=_run_quietly, args=(subject, output))
    child.start()
    child.join(delay)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode is not None
    return child.exitcode


def _run_quietly(subject: Subject, output: Path) -> None:
    log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    subject.run(output)
