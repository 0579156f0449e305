"""Demo (`make demo`) with two training iterations."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_demo(folder, *options):
    command = [sys.executable, str(ROOT / "scripts" / "run_demo.py"), "--output", str(folder), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Return the output folder and the printed text of a first run."""
    folder = tmp_path_factory.mktemp("demo")
    done = run_demo(folder, "--train", "4", "--val", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_prints_stages_metrics_and_path_of_page(demo):
    folder, printed = demo
    assert re.findall(r"== (\d)/5", printed) == ["1", "2", "3", "4", "5"]
    assert re.search(r"mIoU +[\d.]+ +[\d.]+ +\d+ %", printed)
    assert str(folder / "index.html") in printed


def test_page_contains_metrics_and_existing_pictures(demo):
    folder, printed = demo
    page = (folder / "index.html").read_text()
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert len(pictures) == 2 * 4 + 1 + 4 * 3  # four pictures per scene, the losses, three per photograph
    assert all(len(picture) > 1000 for picture in pictures)
    model, oracle = re.search(r" PQ +([\d.]+) +([\d.]+)", printed).groups()
    assert f"<td>{model}</td><td>{oracle}</td>" in re.sub(r">\s+<", "><", page)


def test_commands_on_page_reproduce_metrics(demo):
    folder, printed = demo
    commands = html.unescape(re.search(r"<pre><code>(.*?)</code></pre>", (folder / "index.html").read_text(), re.S)[1])
    assert "--train 4 --val 2" in commands
    export, *_, generate, _, evaluate, _ = commands.strip().splitlines()
    [shard] = (folder / "patches" / "synthetic_val").glob("shard-*")
    before = shard.stat().st_mtime_ns
    script = " && ".join([export, *(command.replace("python", sys.executable, 1) for command in (generate, evaluate))])
    done = subprocess.run(script, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "synthetic_val: 2 images, " in done.stdout
    assert shard.stat().st_mtime_ns == before  # nothing was missing
    [pq] = re.findall(r" PQ +([\d.]+) ", printed)
    assert re.search(rf"\| +{pq} +\|", done.stdout), done.stdout[-2000:]


def test_second_run_skips_finished_stages(demo):
    folder, _ = demo
    checkpoint = folder / "run" / "model_final.pth"
    before = checkpoint.stat().st_mtime_ns
    again = run_demo(folder, "--train", "4", "--val", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already trained") == 1
    assert checkpoint.stat().st_mtime_ns == before


def test_rejects_other_number_of_scenes_in_same_folder(demo):
    folder, _ = demo
    rejected = run_demo(folder, "--train", "5", "--val", "2")
    assert rejected.returncode == 1
    assert rejected.stderr.startswith("error: ")
    assert "another folder" in rejected.stderr


def test_keeps_files_that_are_not_of_a_demo(tmp_path):
    notes = tmp_path / "run" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("of the user")
    rejected = run_demo(tmp_path, "--train", "1", "--val", "1", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()")
    assert rejected.stderr.startswith(f"error: {notes.parent} has files, but is not of a demo")
    assert notes.read_text() == "of the user"
    assert not (tmp_path / "synthetic").exists()
