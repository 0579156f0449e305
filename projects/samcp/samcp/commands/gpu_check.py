"""Tests and measurements on one GPU within a time limit."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from samcp.benchmarks.report import Report, Table
from samcp.errors import UsageError, exit_with_message

_NAME = "gpu_check"
_ROOT = Path(__file__).parents[4]
_TESTS = (
    "tests/proposal_cache/generators/test_device.py",
    "tests/samcp/modeling/test_device.py",
    "tests/samcp/test_device.py",
)
# Stage, and the share of the limit after which it is stopped; what matters most comes first.
STAGES = {"tests": 0.25, "sam vit_h": 0.3, "model R50": 0.11, "model Swin-L": 0.15, "sam vit_b": 0.17}


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message():
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: PyTorch sees no GPU here; try --device cpu --tiny")
        if arguments.stage:
            _run_stage(arguments)
        elif failed := run(arguments):
            sys.exit(f"error: failed or not run: {', '.join(failed)}")


def run(arguments: argparse.Namespace) -> list[str]:
    """Run all stages within the limit; return the names of those that failed or did not run."""
    started, limit = time.monotonic(), 60 * arguments.minutes
    Report(arguments.output, _NAME).clear()
    failed = []
    for stage, share in STAGES.items():
        left = limit - (time.monotonic() - started)
        if share * limit > left:
            fault = f"skipped, it may take {share * limit:.0f} s and {left:.0f} s are left"
        else:
            print(f"{stage}: at most {share * limit:.0f} s", flush=True)
            fault = _run_process(stage, share * limit, arguments)
        if fault:
            print(f"{stage}: {fault}", flush=True)
            failed.append(stage)
    report = Report(arguments.output, _NAME, resume=True)
    print(f"\n{report.markdown.read_text() if report.tables else 'no figures'}")
    print(f"{time.monotonic() - started:.0f} s; written to {report.markdown} and {report.json}")
    return failed


def _run_process(stage: str, limit: float, arguments: argparse.Namespace) -> str:
    """Run a stage for at most `limit` seconds; return why it failed, "" if it did not."""
    command = [sys.executable, sys.argv[0], "--stage", stage, "--device", arguments.device]
    command += ["--output", str(arguments.output), *(["--tiny"] if arguments.tiny else [])]
    started = time.monotonic()
    with subprocess.Popen(command, process_group=0) as process:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
    return f"failed with status {code} after {time.monotonic() - started:.0f} s" if code else ""


def _run_stage(arguments: argparse.Namespace) -> None:
    """Run one stage in this process; every table is written when a row is added to it."""
    report = Report(arguments.output, _NAME, resume=True)
    kind, _, model = arguments.stage.partition(" ")
    if kind == "tests":
        table, passed = _test(arguments)
        report.add(table)
        sys.exit(0 if passed else 1)
    for table in _measure(kind, model, arguments):
        report.add(table)
        print(f"  {', '.join(f'{n} {v}' for n, v in zip(table.columns, table.rows[-1], strict=True) if v)}", flush=True)


def _measure(kind: str, model: str, arguments: argparse.Namespace) -> Iterable[Table]:
    from samcp.benchmarks.gpu import Size, model_tables, sam_tables

    size = Size.tiny() if arguments.tiny else Size()
    measure = sam_tables if kind == "sam" else model_tables
    return measure(model, arguments.device, size, arguments.tiny)


def _test(arguments: argparse.Namespace) -> tuple[Table, bool]:
    """Run the tests that compare the device with the CPU; return their summary, and whether all passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", *_TESTS]
    environment = dict(os.environ)
    if arguments.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    log = arguments.output.absolute() / "tests.log"
    with open(log, "w") as file:
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=False, cwd=_ROOT, env=environment
        ).returncode
    if code:
        print(log.read_text()[-4000:])
    summary = log.read_text().strip().splitlines()[-1].strip("= ")
    return Table(f"Comparison of {arguments.device} with the CPU", ["", "result"], [["tests", summary]]), not code
