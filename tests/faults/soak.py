"""Long runs of generation and training, whose memory and open files must not grow.

    python -m tests.faults.soak --images 2000 --minutes 120
    python -m tests.faults.soak --images 200 --minutes 5

Generation makes the patches of drawn scenes by the generator `contours`, in one process; the training is that of
configs/miniature/demo.yaml on as many scenes, with two loader workers, a checkpoint every 200 and an evaluation every
400 iterations. Memory is the sum of the proportional set sizes (PSS) of a command and its child processes. The
fourth tenth of the time is compared with the last; the exit status is 1 if memory grew by more than 10 %, or open files
by more than 8.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_GROWTH, _FILES = 1.1, 8
_PERIOD = 2.0  # seconds between two measurements
_SPLIT = ("synthetic_train", "synthetic_val")


@dataclass(frozen=True)
class Usage:
    """Memory in bytes and open files of a command and its child processes."""

    memory: int
    files: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=120, help="of training")
    arguments = parser.parse_args()
    print("| run | MB, fourth tenth | MB, last tenth | MB, most | open files, fourth tenth | last tenth |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = folder
        scripts = _ROOT / "scripts"
        _run([scripts / "prepare_synthetic.py", "--train", arguments.images, "--val", 10])
        generate = [scripts / "generate_sam_patches.py", "--generator", "contours", "--shard-size", 100]
        commands = [[*generate, "--dataset", name, "--output", f"{folder}/patches/{name}"] for name in _SPLIT]
        _run(commands[1])
        flat = report(f"generation, {arguments.images} images", watch(commands[0]))
        keys = {
            "OUTPUT_DIR": f"{folder}/run",
            "SOLVER.MAX_ITER": 10**6,
            "TEST.EVAL_PERIOD": 400,
            "DATALOADER.NUM_WORKERS": 2,
        }
        options = [str(part) for item in keys.items() for part in item]
        train = [_ROOT / "projects/samcp/train_net.py", "--config-file", "miniature/demo", *options]
        flat &= report(f"training, {arguments.minutes:g} minutes", watch(train, 60 * arguments.minutes))
        last = Path(folder, "run/metrics.json").read_text().splitlines()[-1]
        print(f"\nThe training reached iteration {json.loads(last)['iteration']}.")
    sys.exit(0 if flat else 1)


def watch(command: Sequence[object], seconds: float | None = None) -> list[Usage]:
    """Run a Python script to its end, or until Ctrl-C after so many seconds, and measure it regularly."""
    with tempfile.TemporaryFile() as log:
        process = _start(command, log.fileno())
        started, usages = time.monotonic(), []
        while process.poll() is None:
            usages.append(measure(process.pid))
            if seconds is not None and time.monotonic() - started > seconds:
                process.send_signal(signal.SIGINT)
                process.wait()
            time.sleep(_PERIOD)
        log.seek(0)
        text = log.read().decode(errors="replace")
    if (process.returncode != 0) == (seconds is None) or "Traceback" in text:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {text[-2000:]}")
    return usages


def measure(root: int) -> Usage:
    """Return the usage of a process and its descendants; those that end meanwhile are skipped."""
    memory = files = 0
    waiting = [root]
    while waiting:
        folder = Path("/proc", str(waiting.pop()))
        try:
            memory += next(
                int(line.split()[1]) << 10
                for line in (folder / "smaps_rollup").read_text().splitlines()
                if line.startswith("Pss:")
            )
            files += len(list((folder / "fd").iterdir()))
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, StopIteration):
            continue
    return Usage(memory, files)


def report(name: str, usages: Sequence[Usage]) -> bool:
    """Print a row of the table, and return whether memory and files were flat."""
    tenth = max(len(usages) // 10, 1)
    parts = usages[3 * tenth : 4 * tenth], usages[-tenth - 1 : -1]  # the very last is of a process that ends
    before, after = (statistics.median(usage.memory for usage in part) / 1e6 for part in parts)
    files, files_after = (int(statistics.median(usage.files for usage in part)) for part in parts)
    most = max(usage.memory for usage in usages) / 1e6
    print(f"| {name} | {before:.0f} | {after:.0f} | {most:.0f} | {files} | {files_after} |", flush=True)
    return after <= _GROWTH * before and files_after <= files + _FILES


def _start(command: Sequence[object], output: int) -> "subprocess.Popen[bytes]":
    def restore_interrupt() -> None:  # which a job in the background ignores
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=output, stderr=output, preexec_fn=restore_interrupt
    )


def _run(command: Sequence[object]) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)


if __name__ == "__main__":
    main()
