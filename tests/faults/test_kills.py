"""Random kills: the programs survive some of them, and the harness of `make faults` notices what is lost."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import kills
from tests.faults.kills import Subject, kill_at_random
from tests.faults.run import subjects
from tests.faults.subjects import Training

PROGRAMS = {"generation": 6, "training": 2, "training, 2 loader workers": 2}
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Subject, int]]]:
    with subjects(tmp_path_factory.mktemp("programs")) as table:
        yield table


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_killed_at_random(programs: dict[str, tuple[Subject, int]], tmp_path: Path, name: str) -> None:
    counts = kill_at_random(programs[name][0], tmp_path, PROGRAMS[name], seed=5)
    assert counts["kills"] == PROGRAMS[name]
    assert set(counts.elements()) <= {"kills", "finished"}


class Waiting:
    """Program that waits, and then is done."""

    def run(self, output: Path) -> None:
        output.mkdir(exist_ok=True)
        (output / "started").touch()
        time.sleep(0.2)
        (output / "done").touch()

    def complete(self, output: Path) -> list[str]:
        return [path.name for path in output.glob("*")] if output.exists() else []

    def result(self, output: Path) -> Any:
        return sorted(self.complete(output))


def test_runs_are_killed_and_started_again(tmp_path: Path) -> None:
    counts = kill_at_random(Waiting(), tmp_path, 3, seed=0)
    assert counts["kills"] == 3
    assert set(counts.elements()) == {"kills", "finished"}


class Scripted:
    """Program whose state after each kill is given; an exception is raised."""

    def __init__(self, *states: set[int] | Exception) -> None:
        self.states = iter(states)

    def run(self, output: Path) -> None:
        pytest.fail("run_until is replaced, so that no program runs")

    def complete(self, output: Path) -> set[int]:
        state = next(self.states)
        if isinstance(state, Exception):
            raise state
        return state

    def result(self, output: Path) -> str:
        return "expected" if output.name == "undisturbed" else "other"


@pytest.mark.parametrize(
    ("program", "statuses", "faults"),
    [
        (Scripted({1}, {1, 2}), [KILLED, KILLED, 0], {"finished": 1}),
        (Scripted({1, 2}, {2}), [KILLED, KILLED, 0], {"finished": 1, "lost": 1}),
        (Scripted(ValueError("wrong checksum"), {1}), [KILLED, KILLED, 0], {"finished": 1, "damaged": 1}),
        (Scripted({1}, {1}), [KILLED, 1, KILLED, 0], {"finished": 1, "failed": 1}),
    ],
    ids=["nothing", "lost", "damaged", "failed"],
)
def test_faults_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Scripted, statuses: list[int], faults: dict[str, int]
) -> None:
    script = iter([0, *statuses])
    monkeypatch.setattr(kills, "run_until", lambda subject, output, delay: next(script))
    counts = kill_at_random(program, tmp_path, 2, seed=0)
    ended = faults["finished"] + faults.get("failed", 0)
    assert +counts == {"kills": 2, "other result": ended, **faults}


def test_losses_are_compared_exactly(tmp_path: Path) -> None:
    """Also those that were computed before a kill, and again after it."""
    for name, loss in (("one", "0x1.8p+1"), ("two", "0x1.8000000000001p+1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "losses.txt").write_text(f"0 0x1.8p+1\n0 {loss}\n")
    one, two = (Training.losses(tmp_path / name) for name in ("one", "two"))
    assert one == {0: {"0x1.8p+1"}}
    assert one != two
