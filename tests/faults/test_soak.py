"""Measurement of memory and open files in `make soak`."""

import os
from contextlib import ExitStack

import pytest

from tests.faults.soak import Usage, measure, report


def test_open_files_and_memory_of_this_process_are_counted() -> None:
    before = measure(os.getpid())
    with ExitStack() as files:
        for _ in range(20):
            files.enter_context(open(os.devnull))
        memory = b"x" * (64 << 20)
        after = measure(os.getpid())
    assert after.files == before.files + 20
    assert after.memory > before.memory + len(memory) // 2


@pytest.mark.parametrize(
    ("memory", "files", "flat"), [(0, 0, True), (5_000_000, 0, False), (0, 1, False)], ids=["flat", "memory", "files"]
)
def test_growth_is_noticed(capsys: pytest.CaptureFixture[str], memory: int, files: int, flat: bool) -> None:
    usages = [Usage(500_000_000 + memory * i, 40 + files * i) for i in range(50)]
    assert report("run", usages) == flat
    assert capsys.readouterr().out.startswith("| run | 5")
