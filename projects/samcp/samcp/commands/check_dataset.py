"""Validation of datasets, with a page of samples for each."""

import argparse
import sys
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from proposal_cache import CacheError, PatchCache, image_key
from proposal_cache.visualize import draw_patches
from samcp.data.datasets.custom.register import register_files
from samcp.data.image_io import read_image
from samcp.data.patch_caches import image_root
from samcp.data.validation.dataset import Report, check_dataset
from samcp.errors import DataError
from samcp.visualization.drawing import draw_ground_truth, enlarge
from samcp.visualization.pages import Row, Section, write_page


def main(arguments: argparse.Namespace) -> None:
    try:
        registered = register_files(arguments.register)
        names = arguments.datasets or registered
        if not names:
            raise DataError("name datasets to check, or files with --register")
        sound = [check(name, arguments) for name in names]
    except (CacheError, DataError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    sys.exit(0 if all(sound) else 1)


def check(name: str, arguments: argparse.Namespace) -> bool:
    """Check one dataset, print the report and write a page of samples; return whether there are no problems."""
    cache = _cache(name, arguments.patches)
    report = check_dataset(name, cache=cache, workers=arguments.workers)
    print(_table(report))
    for remark in report.remarks:
        print(f"{name}: {remark}")
    for problem in report.problems[: arguments.show]:
        print(f"problem: {problem}")
    if len(report.problems) > arguments.show:
        print(f"... and {len(report.problems) - arguments.show} more (see --show)")
    print(f"{name}: {report.images} images, {len(report.problems)} problems")
    page = _write_samples(name, report, cache, arguments.output / name, arguments.samples)
    print(f"samples: {page}\n")
    return not report.problems


def _cache(name: str, given: Path | None) -> PatchCache | None:
    """Return the given cache, or the one in the dataset's metadata if it exists, else None."""
    path = given or Path(MetadataCatalog.get(name).get("patches") or "")
    if given is None and not (path.name and path.is_dir()):
        return None
    return PatchCache(path)


def _table(report: Report) -> str:
    rows = [[one.name, one.segments, one.images, one.pixels] for one in report.classes]
    return tabulate(rows, headers=["class", "segments", "images", "pixels"])


def _write_samples(name: str, report: Report, cache: PatchCache | None, folder: Path, count: int) -> Path:
    """Write a page of evenly spaced images with annotations and patches; return its path."""
    metadata, root = MetadataCatalog.get(name), image_root(name)
    records = DatasetCatalog.get(name) if report.images else []
    rows = []
    for i in np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)).tolist():
        record = records[i]
        try:
            image = read_image(record["file_name"], "RGB")
            pictures = {"image": enlarge(image), "annotations": draw_ground_truth(image, record, metadata)}
            key = image_key(record["file_name"], root)
            if cache is not None and key in cache:
                pictures["patches"] = enlarge(draw_patches(cache[key], image), smooth=False)
        except Exception as error:  # already reported as a problem; write the other samples
            rows.append(Row(record["file_name"], {}, f"cannot be drawn: {error}"))
        else:
            rows.append(Row(record["file_name"], pictures))
    problems = [f"{report.images} images, {len(report.problems)} problems.", *report.problems[:20]]
    table = [[one.name, str(one.segments), str(one.images), str(one.pixels)] for one in report.classes]
    return write_page(
        folder / "index.html",
        name,
        [
            Section("Samples", paragraphs=problems, rows=rows),
            Section("Classes", header=["class", "segments", "images", "pixels"], table=table),
        ],
    )
