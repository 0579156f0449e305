"""Benchmarks at a small size, their report, and the check on a GPU, on the CPU."""

import argparse
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from samcp.benchmarks import data
from samcp.benchmarks.model import fit_growth
from samcp.benchmarks.report import Report, Table, find_falls, keep_tables, read_json, read_kept, update_page
from samcp.errors import DataError, UsageError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def output(script: str, *arguments: object) -> str:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=SCRIPTS.parent, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def read_tables(path: Path) -> list[Table]:
    return [Table(**entry) for entry in read_json(path)["tables"]]


def targets(table: Table) -> dict[str, str]:
    """Return the targets of the rows that have one."""
    return {row[0]: row[-1] for row in table.rows if table.columns[-1] == "target" and row[-1]}


def test_data_measures_parts_and_loading_rates(tmp_path: Path) -> None:
    options = ("--patches", 5, "--images", 4, "--workers", 0, 1)
    output("benchmark.py", "data", *options, "--report", tmp_path)
    parts, loader = read_tables(tmp_path / "data.json")
    times = {row[0]: float(row[1]) for row in parts.rows}
    assert times["whole image"] >= times["load the patches"] > 0
    assert targets(parts) == {
        "whole image": "at most 25 ms",
        "dense: decode and augment all masks": "at least 10 times",
    }
    assert parts.ratios["dense: decode and augment all masks"] > 0
    assert [row[0] for row in loader.rows] == ["0", "1"]


def test_data_measures_with_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks after it in `all` have their own threads again."""
    for name in ("make_dataset", "load_config", "parts_table", "loader_table"):
        monkeypatch.setattr(data, name, lambda *_: torch.get_num_threads())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(data.tables(argparse.Namespace(dataset=None, patches=1, images=1))) == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_model_measures_parts_peers_and_growth(tmp_path: Path) -> None:
    sizes = ("--size", 96, 128, "--patches", 6, "--classes", 8, "--repeats", 1)
    printed = output("benchmark.py", "model", *sizes, "--more-patches", 2, 4, 8, "--more-classes", "--report", tmp_path)
    forward, merging, growth = read_tables(tmp_path / "model.json")
    names = [row[0] for row in forward.rows]
    assert {"backbone", "decoder", "everything after the FPN", "R50-FPN alone"} <= set(names)
    assert names[-1] == "Mask2Former-R50"  # its time, or how to install its dependencies
    assert forward.ratios["R50-FPN alone / SAM-CP"] > 0
    assert targets(forward) == {"everything after the FPN": "at most 0.25", "R50-FPN alone": "at least 0.67"}
    assert "6 masks into 100 queries" in merging.note
    assert list(targets(merging).values()) == ["at least 500"]
    assert [row[0] for row in growth.rows] == ["2", "4", "8"]
    assert (tmp_path / "model.md").read_text().count("**") == 6
    assert "**The forward pass**" in printed


def test_growth_is_fitted_to_three_or_more_counts() -> None:
    assert fit_growth("patches", [100], [0.2]) == ""
    note = fit_growth("patches", [100, 200, 400], [0.2, 0.3, 0.5])
    assert note.startswith("Fitted: 100 ms + 1.000 ms for each of the patches + ")


def test_generation_compares_with_segment_anything(tmp_path: Path) -> None:
    options = ("--model-type", "tiny", "--points-per-side", 4, "--memory-points", 2, "--encoder-repeats", 1)
    output("benchmark.py", "generation", *options, "--report", tmp_path)
    times, memory, encoder = read_tables(tmp_path / "generation.json")
    assert [row[0] for row in times.rows] == ["encoder", "decoder", "the rest", "whole image"]
    assert targets(times) == {"decoder": "at most 0.20", "the rest": "at most 0.10", "whole image": "at most 0.25"}
    assert memory.rows[0][1].endswith(" MB")
    assert targets(memory) == {"2²": "at most 0.33"}
    assert targets(encoder) == {"SamGenerator": "at most 1.5"}
    assert [row[0] for row in encoder.rows][1:] == ["segment_anything", "SamGenerator"]


def table(ratio: float) -> Table:
    return Table("The store", ["", "ms"], [["ours", "1"]], {"load": ratio})


def test_falls_of_more_than_a_fifth_are_reported() -> None:
    kept = [table(2.0)]
    assert find_falls([table(1.65)], kept) == []
    assert find_falls([table(1.5)], kept) == ["The store: load fell from 2.00 to 1.50 times (-25%)"]
    assert find_falls([table(1.5)], []) == [], "nothing is kept"


def test_report_is_continued_only_on_request(tmp_path: Path) -> None:
    Report(tmp_path, "x").add(table(1))
    Report(tmp_path, "x", resume=True).add(Table("Other", ["", "ms"], []))
    assert [t.title for t in read_tables(tmp_path / "x.json")] == ["The store", "Other"]
    Report(tmp_path, "x").add(table(1))
    assert len(read_tables(tmp_path / "x.json")) == 1


def test_only_figures_between_the_markers_of_a_page_are_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("prose\n<!-- make bench: store -->\nold\n<!-- end of make bench -->\nmore\n")
    for text in ("first", "second"):
        update_page(page, "store", text)
    assert page.read_text() == "prose\n<!-- make bench: store -->\n\nsecond\n<!-- end of make bench -->\nmore\n"
    with pytest.raises(UsageError, match="has no lines '<!-- make bench: data -->'"):
        update_page(page, "data", "text")


def test_documented_page_has_the_tables_of_every_benchmark_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text((SCRIPTS.parent / "docs" / "benchmarks.md").read_text())
    for name in ("generation", "store", "data", "model"):
        update_page(page, name, f"figures of {name}")
        [section] = [text for text in page.read_text().split("\n## ") if f"figures of {name}" in text]
        assert "\n|" not in section, "a table that a run would not replace"


def test_only_the_tables_of_the_benchmarks_that_ran_are_replaced(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("".join(f"<!-- make bench: {name} -->\n<!-- end of make bench -->\n" for name in ("store", "data")))
    assert read_kept(tmp_path) == []
    keep_tables(tmp_path, {"store": [table(1)], "data": [Table("Loading", ["", "ms"], [["all", "30"]])]})
    keep_tables(tmp_path, {"data": [Table("Loading", ["", "ms"], [["all", "24"]])]})
    assert [(t.title, t.rows[0][1]) for t in read_kept(tmp_path)] == [("The store", "1"), ("Loading", "24")]
    assert [row for row in page.read_text().splitlines() if row.startswith("| all")] == ["| all |   24 |"]
    (tmp_path / "benchmarks.json").write_text('{"tables": []}')
    with pytest.raises(DataError, match=r"benchmarks.json is not a report of measurements"):
        read_kept(tmp_path)


def test_damaged_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x.json is not a report of measurements \('tables'\); delete it"):
        read_tables(tmp_path / "x.json")


def test_scaling_prints_rates_and_sizes() -> None:
    printed = output(
        "benchmark_scaling.py", "workers", "--engine", "local", "--images", 4, "--seconds", 0, "--workers", 1
    )
    assert re.search(r"^local +1 +[\d.]+ +0\.000$", printed, re.MULTILINE)
    printed = output("benchmark_scaling.py", "index", "--images", 3000)
    assert re.search(r"^manifest\.json +[\d.]+ MB per million images$", printed, re.MULTILINE)
    assert len(re.findall(r" MB peak, ", printed)) == 5


def environment_of_the_bundle(folder: Path) -> Path:
    """Make an environment with PyTorch, its requirements and the bundle's packages only; return its interpreter."""
    import make_gpu_bundle

    detectron2 = metadata.packages_distributions()["detectron2"]  # several distributions have it
    there, required = {*detectron2, *make_gpu_bundle.WHEELS, *make_gpu_bundle.SOURCES}, ["torch", "torchvision"]
    while required:
        there.add(name := required.pop())
        found = map(Requirement, metadata.requires(name) or [])
        required += [r.name for r in found if not (r.marker and not r.marker.evaluate()) and r.name not in there]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for package in map(metadata.distribution, there):
        for part in {Path(file).parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (packages / part).exists():
                (packages / part).symlink_to(package.locate_file(part))
    return folder / "bin" / "python"


@pytest.mark.slow
def test_gpu_check_runs_all_stages_small_with_the_packages_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPTS.parent), str(SCRIPTS.parent / "projects" / "samcp")]))
    monkeypatch.setattr(sys, "executable", str(environment_of_the_bundle(tmp_path / "environment")))
    printed = output("gpu_check.py", "--device", "cpu", "--tiny", "--minutes", 20, "--output", tmp_path)
    tables = {t.title: t for t in read_tables(tmp_path / "gpu_check.json")}
    assert "passed" in tables["Comparison of cpu with the CPU"].rows[0][1]
    sam = tables["Segment-everything, vit_h, 6² prompts, cpu"]
    assert sam.rows[0][0] == "segment_anything, float32"
    assert len({row[-2] for row in sam.rows}) == 1, "all generators find as many masks"
    assert len(sam.rows) == 4
    assert [row[0] for row in tables["SAM-CP, Swin-L, cpu"].rows][1:3] == ["training, bfloat16", "inference, float32"]
    assert "**SAM-CP, R50, cpu**" in printed


def test_gpu_check_skips_stages_beyond_the_limit(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "gpu_check.py"), "--device", "cpu", "--minutes", "0"]
    result = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "model R50: skipped, it may take" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("gpu_check.py",),
        ("benchmark.py", "model"),
        ("measure_time.py", "--weights", "w", "--images", "i"),
    ],
)
def test_second_gpu_is_refused_since_the_clocks_wait_for_the_first(command: tuple[str, ...]) -> None:
    run = [sys.executable, str(SCRIPTS / command[0]), *command[1:], "--device", "cuda:1"]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "argument --device: invalid choice: 'cuda:1'" in result.stderr


def test_bundle_unpacks_only_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import make_gpu_bundle
    import unpack_wheels

    def wheel(folder: Path, name: str, *files: str) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.writestr(file, "content")
        return path

    bundle = tmp_path / "bundle"
    bundle.mkdir()
    make_gpu_bundle.compress(wheel(tmp_path / "in", "absent", "absent/a.py", "absent/tests/t.py"), bundle)
    make_gpu_bundle.compress(wheel(tmp_path / "in", "numpy", "numpy/a.py"), bundle)
    there, unpacked = unpack_wheels.unpack_missing(bundle, tmp_path / "out")
    assert [name.split()[0] for name in there] == ["numpy"]
    assert unpacked == ["absent 1.0"]
    assert [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.py")] == ["absent/a.py"]


def test_bundle_replaces_only_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import make_gpu_bundle

    output, bundle = tmp_path / "output", tmp_path / "bundle"
    for folder in (output, bundle):
        folder.mkdir()
    (output / "timm-1.0-py3-none-any.whl").write_text("earlier")
    (output / "own-1.0-py3-none-any.whl").write_text("of the user")
    (bundle / "timm-2.0-py3-none-any.whl").write_text("new")
    with pytest.raises(SystemExit, match=r"own-1.0-py3-none-any.whl is not of a bundle; choose another folder"):
        make_gpu_bundle.replace_wheels(output, bundle)
    assert len(list(output.iterdir())) == 2
    (output / "own-1.0-py3-none-any.whl").unlink()
    make_gpu_bundle.replace_wheels(output, bundle)
    assert [file.name for file in output.iterdir()] == ["timm-2.0-py3-none-any.whl"]
