"""Processes of jobs: finished measurements are not repeated, and a failure does not end the others."""

import dataclasses
import itertools
import json
import sys
import textwrap

import pytest
from tqdm import tqdm

from proposal_cache.errors import StorageError
from samcp.miniature.reproduce import measure, plan, workers
from samcp.miniature.reproduce.document import read_section
from samcp.miniature.reproduce.plan import Plan, Protocol
from samcp.miniature.reproduce.tables import load_table
from samcp.miniature.reproduce.workers import run_jobs
from tests.faults.conditions import disk_full

# Instead of a training: PQ 50, but the job of the row "without MaskRoI" fails, or is killed.
FAKE = """
import json, os, signal, sys
from pathlib import Path
from samcp.miniature.reproduce.jobs import Job, result_file
job, output = Job.from_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
for measurement in job.measurements:
    if "without MaskRoI" in measurement.label:
        sys.exit("no memory")
    if "without query" in measurement.label:
        os.kill(os.getpid(), signal.SIGKILL)
    path = result_file(output, measurement)
    path.parent.mkdir(exist_ok=True)
    with path.open("x") as file:  # fails if it exists
        json.dump({"metrics": {"PQ": 50.0}, "date": "2026-11-29", "machine": "laptop"}, file)
"""


# Instead of a job: note when it ran.
RECORD = """
import json, sys, time
from pathlib import Path
kind = json.loads(Path(sys.argv[1]).read_text())["measurements"][0]["kind"]
start = time.monotonic()
time.sleep(0.3)
with Path(sys.argv[2], "spans.jsonl").open("a") as file:
    print(json.dumps([start, time.monotonic(), kind]), file=file)
"""

# Instead of a job: the metrics of its training.
TRAIN = """
import sys
from pathlib import Path
from samcp.miniature.reproduce.jobs import Job, training_folder
folder = training_folder(Path(sys.argv[2]), Job.from_json(Path(sys.argv[1]).read_text()).training)
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.json").write_text('{"iteration": 349}')
"""


@pytest.fixture
def timed(table):
    return load_table("table11")


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(plan, "data_identity", lambda dataset, patches: f"{dataset} {patches}")
    monkeypatch.setattr("samcp.miniature.reproduce.workers._POLL", 0.05)
    return load_table("table4")


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE))
    return [sys.executable, str(script)]


def test_failed_jobs_are_named_and_the_others_finish(table, command, tmp_path):
    planned = Plan([table], Protocol(seeds=1, quick=True))
    jobs = planned.jobs(tmp_path)
    failures = run_jobs(jobs, tmp_path, 2, command)
    assert len(jobs) == 6
    messages = sorted(map(str, failures))
    assert "table4, without MaskRoI, seed 0 (exit status 1)" in messages[0]
    assert "table4, without query enhancement, seed 0 (killed by SIGKILL)" in messages[1]
    assert "no memory" in next(f for f in failures if f.status == 1).log.read_text()
    values = read_section(table, planned, tmp_path, "").values
    assert values["all modules", "PQ"] == [50]
    assert values["without MaskRoI", "PQ"] == []
    # The same command tries the failed ones only.
    assert {job.label for job in planned.jobs(tmp_path)} == {failure.job.label for failure in failures}


def test_finished_measurements_are_not_repeated(table, command, tmp_path):
    table = dataclasses.replace(table, rows=table.rows[-1:], claims=())
    assert run_jobs(Plan([table], Protocol(1, True)).jobs(tmp_path), tmp_path, 1, command) == []
    more = Plan([table], Protocol(3, True)).jobs(tmp_path)
    assert [job.label for job in more] == ["table4, all modules, seed 1", "table4, all modules, seed 2"]
    assert run_jobs(more, tmp_path, 1, command) == []
    assert Plan([table], Protocol(3, True)).jobs(tmp_path) == []


def test_results_are_whole_or_absent(monkeypatch, table, tmp_path):
    planned = Plan([table], Protocol(1, True))
    measurement = planned.jobs(tmp_path)[0].measurements[0]
    monkeypatch.setattr(measure, "_KINDS", {"evaluation": lambda cfg: {"PQ": 50.0}})
    with disk_full(10), pytest.raises(StorageError, match="File too large"):
        measure.measure(measurement, tmp_path)
    assert measurement in [m for job in planned.jobs(tmp_path) for m in job.measurements]
    measure.measure(measurement, tmp_path)
    assert measurement not in [m for job in planned.jobs(tmp_path) for m in job.measurements]


def test_time_is_measured_last_and_alone(timed, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(RECORD))
    jobs = Plan([timed], Protocol(2, True)).jobs(tmp_path)
    assert [job.measurements[0].kind for job in jobs] == ["evaluation", "evaluation", "time", "time"]
    assert run_jobs(jobs, tmp_path, 4, [sys.executable, str(script)]) == []
    spans = sorted(json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines())
    assert [kind for _, _, kind in spans[2:]] == ["time", "time"]
    together = [a[1] > b[0] for a, b in itertools.pairwise(spans)]
    assert together == [True, False, False]


def test_progress_ends_at_its_total(monkeypatch, timed, tmp_path):
    """Also if two jobs share a training, of which the first does the iterations."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TRAIN))
    bars = []
    monkeypatch.setattr(workers, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    assert run_jobs(Plan([timed], Protocol(1, True)).jobs(tmp_path), tmp_path, 1, [sys.executable, str(script)]) == []
    assert bars[0].n == bars[0].total
