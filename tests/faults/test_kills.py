"""Random kills: the programs survive some of them, and the harness of `make faults` notices what is lost."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kills import Subject, kill_at_random
from tests.faults.run import subjects
from tests.faults.subjects import Training

PROGRAMS = {"generation": 6, "training": 2, "training, 2 loader workers": 2}


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


class Careful:
    """Program that writes three files atomically, one after the other, slowly."""

    def run(self, output: Path) -> None:
        output.mkdir(exist_ok=True)
        for i in range(3):
            if not (output / f"{i}").exists():
                self.write(output / f"{i}", b"0123456789")

    def write(self, path: Path, content: bytes) -> None:
        temporary = path.with_name("temporary")
        self.write_slowly(temporary, content)
        os.replace(temporary, path)

    def write_slowly(self, path: Path, content: bytes) -> None:
        path.write_bytes(b"")
        for byte in content:
            with path.open("ab", buffering=0) as file:
                file.write(bytes([byte]))
            self.wait()

    def wait(self) -> None:
        for _ in range(20_000):
            pass

    def complete(self, output: Path) -> list[str]:
        found = sorted(output.glob("[0-2]")) if output.exists() else []
        damaged = [path for path in found if path.read_bytes() != b"0123456789"]
        if damaged:
            raise ValueError(f"{damaged[0]} is damaged")
        return [path.name for path in found]

    def result(self, output: Path) -> Any:
        return {path.name: path.read_bytes() for path in output.glob("[0-2]")}


class Careless(Careful):
    """Program that writes under the final names."""

    def write(self, path: Path, content: bytes) -> None:
        self.write_slowly(path, content)


class Forgetful(Careful):
    """Program that starts again each time."""

    def run(self, output: Path) -> None:
        for path in output.glob("*"):
            path.unlink()
        super().run(output)


class Failing(Careful):
    """Program that cannot continue."""

    def run(self, output: Path) -> None:
        if output.exists():
            raise SystemExit(1)
        super().run(output)


def kill_rounds(program: Careful, folder: Path, rounds: int) -> Iterator[Counter[str]]:
    for seed in range(rounds):
        (folder / f"{seed}").mkdir()
        yield kill_at_random(program, folder / f"{seed}", 12, seed)


def test_harness_finds_no_fault_in_a_careful_program(tmp_path: Path) -> None:
    [counts] = kill_rounds(Careful(), tmp_path, 1)
    assert counts["kills"] == 12
    assert set(counts.elements()) <= {"kills", "finished"}


@pytest.mark.parametrize(("program", "fault"), [(Careless(), "damaged"), (Forgetful(), "lost"), (Failing(), "failed")])
def test_harness_notices_faults(tmp_path: Path, program: Careful, fault: str) -> None:
    """In one of several rounds: where a kill falls depends on the load of the machine."""
    assert any(counts[fault] for counts in kill_rounds(program, tmp_path, 20))


def test_a_training_that_draws_other_data_has_another_result(tmp_path: Path) -> None:
    """The comparison is exact, and includes losses that were computed before a kill."""
    for name, loss in (("one", "0x1.8p+1"), ("two", "0x1.8000000000001p+1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "losses.txt").write_text(f"0 0x1.8p+1\n0 {loss}\n")
    one, two = (Training.losses(tmp_path / name) for name in ("one", "two"))
    assert one == {0: {"0x1.8p+1"}}
    assert one != two
