"""The fuzzer itself: mutations are repeatable, and hangs, crashes, wrong results and nameless errors are found."""

import json
import os
import signal
import time

import numpy as np
import pytest

from samcp.errors import DataError
from tests.fuzz import run
from tests.fuzz.formats import FORMATS, Format
from tests.fuzz.mutations import mutate_bytes, mutate_tree


def test_mutations_depend_on_the_seed_only():
    tree = {"a": [1, {"b": "text"}], "c": 0.5}
    for mutate, value in ((mutate_bytes, b"some bytes"), (mutate_tree, tree)):
        first, second = ([repr(mutate(value, np.random.default_rng(i))) for i in range(50)] for _ in range(2))
        assert first == second
        assert len(set(first)) > 30
    assert tree == {"a": [1, {"b": "text"}], "c": 0.5}


def read_broken(path):
    """Fail in a way that depends on the first byte of the file."""
    first = path.read_bytes()[:1]
    if first == b"h":
        time.sleep(60)
    if first == b"c":
        os.kill(os.getpid(), signal.SIGKILL)
    if first == b"t":
        json.loads("{")
    if first == b"n":
        raise DataError("something is wrong")
    if first == b"m":
        bytearray(2 * run._MEMORY)
    if first == b"e":
        raise DataError(f"{path}: wrong")
    return first


@pytest.mark.parametrize(
    ("first", "outcome", "message"),
    [
        (b"v", "same result", ""),
        (b"w", "FAILED", "silently wrong"),
        (b"h", "FAILED", "hangs"),
        (b"c", "FAILED", "crashes"),
        (b"t", "FAILED", "JSONDecodeError"),
        (b"n", "FAILED", "without the name"),
        (b"m", "FAILED", "MemoryError"),
        (b"e", "error", "wrong"),
    ],
)
def test_failures_are_found(monkeypatch, first, outcome, message):
    def write(folder):
        (folder / "a.txt").write_bytes(b"v")
        return folder / "a.txt"

    monkeypatch.setitem(FORMATS, "broken", Format(write, read_broken, lambda content, random: first, checked=True))
    monkeypatch.setattr(run, "_SECONDS", 5)
    monkeypatch.setattr(run, "_MEMORY", 200 << 20)
    (found,) = run.supervise("broken", 0, 1, seed=0)
    assert found[1] == outcome
    assert message in found[2]


@pytest.mark.parametrize("name", ["image.png", "vocabulary", "config", "shard", "COCO results"])
def test_some_inputs(name):
    failed = [message for _, outcome, message in run.supervise(name, 0, 6, seed=3) if outcome == "FAILED"]
    assert not failed
