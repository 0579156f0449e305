"""Read mutated files of every format; each must give an error that names the file, or a result.

    python -m tests.fuzz.run --inputs 300 --seed 1
    python -m tests.fuzz.run --inputs 1 --first 217 --format shard     # repeat one input

A worker process reads the inputs, with a limit of memory. If one takes too long, or crashes the worker, the input is
counted and a new worker continues behind it. Inputs depend on the seed, the format and their number only. The exit
status is 1 if an input failed.
"""

import argparse
import collections
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from samcp.errors import USER_ERRORS
from tests.fuzz.formats import FORMATS

OUTCOMES = ("same result", "other result", "error", "FAILED")
_MEMORY = 2 << 30  # bytes that an input may need beyond those of the loaded program
_SECONDS = 120  # per input; most take milliseconds, but the machine may be busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=300, help="number per format")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="default: all")
    arguments = parser.parse_args()
    print(f"| {'format':26} | {' | '.join(OUTCOMES)} |\n| --- | {' | '.join('---:' for _ in OUTCOMES)} |")
    failed = False
    for name in arguments.format or FORMATS:
        counts: collections.Counter[str] = collections.Counter()
        for number, outcome, message in supervise(name, arguments.first, arguments.inputs, arguments.seed):
            counts[outcome] += 1
            if outcome == "FAILED":
                failed = True
                print(f"{name}, input {number}: {message}", file=sys.stderr, flush=True)
        print(f"| {name:26} | {' | '.join(str(counts[outcome]) for outcome in OUTCOMES)} |", flush=True)
    sys.exit(1 if failed else 0)


def supervise(name: str, first: int, count: int, seed: int) -> Iterator[tuple[int, str, str]]:
    """Yield number, outcome and message of each input, from workers that are replaced if they hang or crash."""
    fork = multiprocessing.get_context("fork")
    end = first + count
    while first < end:
        receiver, sender = fork.Pipe(duplex=False)
        worker = fork.Process(target=work, args=(name, range(first, end), seed, sender))
        worker.start()
        sender.close()
        cause = "hangs"
        while receiver.poll(_SECONDS):
            try:
                first, outcome, message = receiver.recv()
            except EOFError:
                cause = "crashes the process"
                break
            yield first, outcome, message
            first += 1
        worker.kill()
        worker.join()
        if first < end:
            yield first, "FAILED", cause
            first += 1


def work(name: str, numbers: range, seed: int, sender: Connection) -> None:
    """Read inputs, and send number, outcome and message of each."""
    for stream in (1, 2):  # for what the readers print
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as root:
        valid = Path(root) / "valid"
        valid.mkdir()
        path = FORMATS[name].write(valid).relative_to(valid)
        expected = FORMATS[name].read(_copy(valid, Path(root) / "expected") / path)
        limit_memory()
        for number in numbers:
            folder = _copy(valid, Path(root) / str(number))
            sender.send((number, *judge(name, folder / path, number, seed, expected)))
            shutil.rmtree(folder, ignore_errors=True)


def judge(name: str, path: Path, number: int, seed: int, expected: Any) -> tuple[str, str]:
    """Mutate a file, read it, and return outcome and message."""
    kind = FORMATS[name]
    random = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    path.write_bytes(kind.mutate(path.read_bytes(), random))
    try:
        found = kind.read(path)
    except USER_ERRORS as error:
        text = " ".join(str(error).split())
        if any(part.name in text for part in path.parent.rglob("*")) or path.name in text:
            return "error", text
        return "FAILED", f"error without the name of a file: {text[:300]}"
    except BaseException as error:
        return "FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if found == expected:
        return "same result", ""
    return ("FAILED", "silently wrong") if kind.checked else ("other result", "")


def limit_memory() -> None:
    """Limit the address space to what is in use now and _MEMORY."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))


def _copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


if __name__ == "__main__":
    main()
