"""Processes that run jobs at the same time, with progress; the failure of one does not end the others."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from samcp.config import parse_config
from samcp.miniature.reproduce.jobs import Job, training_folder

_POLL = 1.0  # seconds
_MEASUREMENT = 30  # iterations of a training that take about as long as a measurement
_COMMAND = (sys.executable, "-m", "samcp.miniature.reproduce.measure")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Failure:
    """Job whose process failed.

    Attributes:
        job: the job.
        status: of the process; negative for a signal.
        log: its output.
    """

    job: Job
    status: int
    log: Path

    def __str__(self) -> str:
        how = f"killed by {signal.Signals(-self.status).name}" if self.status < 0 else f"exit status {self.status}"
        return f"failed: {self.job.label} ({how}); log: {self.log}"


class _Running:
    """Process of a job.

    Attributes:
        log: its output.
        done: iterations of the job that :meth:`advance` has counted.
    """

    def __init__(self, job: Job, output: Path, command: Sequence[str], done: int) -> None:
        self.job, self.output, self.done = job, output, done
        self.log, spec = (output / "logs" / f"{job.identity}.{suffix}" for suffix in ("txt", "json"))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        spec.write_text(job.to_json())
        with self.log.open("wb") as file:
            file.write(f"{job.label}\n".encode())
            file.flush()
            self.process = subprocess.Popen(
                [*command, str(spec), str(output)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            )

    def advance(self) -> int:
        """Return the iterations since the last call; all that remain if the process has ended."""
        ended = self.process.poll() is not None
        now = max(self.done, _iterations(self.job) if ended else _finished_iterations(self.job, self.output))
        before, self.done = self.done, now
        return now - before


def run_jobs(jobs: Sequence[Job], output: Path, workers: int, command: Sequence[str] = _COMMAND) -> list[Failure]:
    """Run jobs in processes of one thread each, and return those that failed.

    Jobs that measure time run alone, after all others. On Ctrl-C all processes are ended; trainings continue from
    their last checkpoint the next time.

    Args:
        jobs: not yet finished.
        output: folder of trainings, results and logs.
        workers: number of processes.
        command: run with the path of the job's json and `output`.
    """
    waiting = list(jobs)
    running: list[_Running] = []
    failures: list[Failure] = []
    # A training that a later job shares is counted for both, and found finished when that job starts.
    finished = {job.identity: _finished_iterations(job, output) for job in jobs}
    total = sum(map(_iterations, jobs))
    bar = tqdm(total=total, initial=sum(finished.values()), unit="it", mininterval=2, smoothing=0.05)
    try:
        while waiting or running:
            while waiting and _may_start(waiting[0], running, workers):
                job = waiting.pop(0)
                running.append(_Running(job, output, command, finished[job.identity]))
            time.sleep(_POLL)
            ended = [one for one in running if one.process.poll() is not None]
            bar.update(sum(one.advance() for one in running))
            for one in ended:
                running.remove(one)
                if one.process.returncode:
                    failures.append(Failure(one.job, one.process.returncode, one.log))
                    bar.write(str(failures[-1]), file=sys.stderr)
            bar.set_postfix_str(f"{len(jobs) - len(waiting) - len(running)} of {len(jobs)} jobs", refresh=False)
    finally:
        _end([one.process for one in running])
        bar.close()
    return failures


def _may_start(job: Job, running: Sequence[_Running], workers: int) -> bool:
    alone = job.is_timed or any(one.job.is_timed for one in running)
    return not running if alone else len(running) < workers


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _iterations(job: Job) -> int:
    training = parse_config(job.training.config).SOLVER.MAX_ITER if job.training else 0
    return training + _MEASUREMENT * len(job.measurements)


def _finished_iterations(job: Job, output: Path) -> int:
    """Return the iterations of a job's training that are finished, from its metrics.json."""
    if job.training is None:
        return 0
    path = training_folder(output, job.training) / "metrics.json"
    try:
        *_, last = path.read_text().splitlines()
        return int(json.loads(last)["iteration"]) + 1
    except (OSError, ValueError, KeyError):  # not written yet, or only in part
        return 0
