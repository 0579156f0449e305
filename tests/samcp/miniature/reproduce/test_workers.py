"""Processes of jobs: finished measurements are not repeated, and a failure does not end the others."""

import dataclasses
import json
import sys
import textwrap

import pytest

from samcp.miniature.reproduce import plan
from samcp.miniature.reproduce.document import read_section
from samcp.miniature.reproduce.jobs import result_file
from samcp.miniature.reproduce.plan import Plan, Protocol
from samcp.miniature.reproduce.tables import load_table
from samcp.miniature.reproduce.workers import run_jobs

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


def test_half_written_results_count_as_missing(table, tmp_path):
    """Results are written under another name first."""
    planned = Plan([table], Protocol(1, True))
    measurement = planned.jobs(tmp_path)[0].measurements[0]
    path = result_file(tmp_path, measurement)
    path.parent.mkdir()
    path.with_suffix(".tmp").write_text("{")
    assert measurement in [m for job in planned.jobs(tmp_path) for m in job.measurements]
    path.write_text(json.dumps({"metrics": {}}))
    assert measurement not in [m for job in planned.jobs(tmp_path) for m in job.measurements]


def test_time_is_measured_last(monkeypatch, table, tmp_path):
    kinds = [job.measurements[0].kind for job in Plan([load_table("table11"), table], Protocol(1, True)).jobs(tmp_path)]
    assert kinds == ["evaluation"] * 7 + ["time"]
