"""Import and export of COCO json files on the command line."""

import json
import math
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from proposal_cache import PatchCache, rle
from tests.proposal_cache.tool import SIZE, error_of, run, write_annotations, write_json

SQUARE = [[2, 3, 8, 3, 8, 9, 2, 9]]


def test_round_trip(cache: Path, annotations: Path, tmp_path: Path) -> None:
    assert run("export", cache, "--annotations", annotations, "--output", tmp_path / "out.json") == 0
    entries = json.loads((tmp_path / "out.json").read_text())
    assert [entry["image_id"] for entry in entries] == [7, 7, 9, 9]
    assert entries[0]["bbox"] == [0, 0, 5, 12]
    assert [entry["score"] for entry in entries] == [0.5, 0.75, 1.0, 1.0]
    command = ("import", tmp_path / "out.json", "--annotations", annotations)
    assert run(*command, "--output", tmp_path / "back", "--dataset", "toy") == 0
    one, back = PatchCache(cache), PatchCache(tmp_path / "back")
    assert {key: one[key].rles for key in one} == {key: back[key].rles for key in back}
    assert back["a"].predicted_iou.tolist() == [0.5, 0.75]
    assert run(*command, "--output", tmp_path / "bare", "--drop-scores") == 0
    assert np.isnan(PatchCache(tmp_path / "bare")["a"].predicted_iou).all()
    assert run("export", cache, "--output", tmp_path / "by key.json") == 0
    assert [e["image_id"] for e in json.loads((tmp_path / "by key.json").read_text())] == ["a", "a", "sub/b", "sub/b"]


def test_export_skips_failed_images(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = write_annotations(tmp_path / "known.json", {0: "a.jpg", 1: "bad.png"})
    output = ("--output", tmp_path / "out.json")
    assert run("export", cache, "--annotations", known, *output) == 0
    assert [entry["image_id"] for entry in json.loads((tmp_path / "out.json").read_text())] == [0, 0]
    assert "warning: skipped bad: bad.png: the file is empty" in capsys.readouterr().err
    other = write_annotations(tmp_path / "other.json", {0: "a.jpg", 1: "unknown.png"})
    assert "no patches of 'unknown'" in error_of("export", cache, "--annotations", other, *output)
    assert sorted(path.name for path in tmp_path.glob("out.json*")) == ["out.json"]
    (tmp_path / "file").touch()
    assert "cannot be written" in error_of("export", cache, "--output", tmp_path / "file" / "out.json")


def test_import_keeps_labels_as_sources(annotations: Path, tmp_path: Path) -> None:
    uncompressed = {"size": list(SIZE), "counts": [12, 24, 12 * 20 - 36]}
    entries = [
        {"image_id": 7, "category_id": 6, "segmentation": SQUARE},
        {"image_id": 7, "category_id": 4, "segmentation": uncompressed, "score": 0.25},
    ]
    results = write_json(tmp_path / "results.json", entries)
    command = ("import", results, "--annotations", annotations, "--keep-labels", "--output", tmp_path / "new")
    assert run(*command) == 0
    cache = PatchCache(tmp_path / "new")
    assert [g["category"] for g in cache.manifest.generators] == ["cat", "dog"]
    assert cache["a"].source.tolist() == [1, 0]
    assert cache["a"].areas.tolist() == [36, 24]
    assert len(cache["sub/b"]) == 0
    assert cache.manifest.dataset == "results"


def test_import_added_to_a_cache(cache: Path, annotations: Path, tmp_path: Path) -> None:
    mask = rle.to_json(rle.encode(np.eye(*SIZE)[None])[0], *SIZE)
    entry = {"image_id": 9, "segmentation": mask, "score": 0.9}
    results = write_json(tmp_path / "results.json", [entry])
    command = ("import", results, "--annotations", annotations, "--add-to", cache, "--output", tmp_path / "both")
    assert run(*command) == 0
    both = PatchCache(tmp_path / "both")
    assert both.manifest.dataset == "toy"
    assert both["sub/b"].source.tolist() == [0, 0, 1]
    assert both["sub/b"].areas.tolist() == [120, 120, 12]
    assert not list(tmp_path.glob(".import-*"))
    assert "both cannot be created: " in error_of(*command[:-1], results / "both")


def test_import_added_to_a_cache_with_other_keys(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_json(tmp_path / "results.json", [])
    images = tmp_path / "images.json"
    command = ("import", results, "--add-to", cache, "--output", tmp_path / "both", "--annotations", images)
    write_annotations(images, {0: "val/a.jpg", 1: "val/sub/b.jpg"})
    message = r"no image of .*results\.json is in .*: a key of the results is 'val/a', of the cache 'a'\."
    assert re.search(message, error_of(*command))
    assert not (tmp_path / "both").exists()
    write_annotations(images, {0: "a.jpg", 1: "bad.png", 2: "c.jpg"})
    assert run(*command) == 0
    assert "warning: 1 of 3 images of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 5, "segmentation": []}, "image_id 5 is not in"),
        ({"image_id": [], "segmentation": []}, r"image_id \[\] is not in"),
        ({"image_id": 7}, "has no segmentation"),
        ("what", "has no segmentation"),
        ({"image_id": 7, "segmentation": {"size": [3, 3], "counts": "09"}}, r"has size \[3, 3\]"),
        ({"image_id": 7, "segmentation": {"size": list(SIZE), "counts": "zzzz"}}, "image 7"),
        ({"image_id": 7, "segmentation": {"size": list(SIZE), "counts": [5, 10**9]}}, "counts do not describe"),
        ({"image_id": 7, "segmentation": {"size": list(SIZE), "counts": [-1, 241]}}, "counts do not describe"),
        ({"image_id": 7, "segmentation": {}}, "image 7"),
        ({"image_id": 7, "segmentation": {"size": list(SIZE), "counts": "\ud800"}}, "invalid characters"),
        ({"image_id": 7, "segmentation": {"size": list(SIZE), "counts": [239.5, 0.5]}}, "counts do not describe"),
        ({"image_id": 7, "segmentation": {"size": None, "counts": "a"}}, "has size None"),
        ({"image_id": 7, "segmentation": SQUARE, "score": "good"}, "score 'good' is not a finite number"),
        ({"image_id": 7, "segmentation": SQUARE, "score": math.inf}, "score inf is not a finite number"),
        ({"image_id": 7, "segmentation": SQUARE, "category_id": [1]}, r"category_id \[1\] is neither"),
    ],
)
def test_import_rejects_invalid_results(entry: Any, message: str, annotations: Path, tmp_path: Path) -> None:
    results = write_json(tmp_path / "results.json", [entry])
    command = ("import", results, "--annotations", annotations, "--keep-labels", "--output", tmp_path / "new")
    assert re.search(f"entry 0 of .*results.json.*{message}", error_of(*command))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        *((value, "must be a list of polygons or") for value in (None, "abc", 5, [])),
        *(([points], "at least three points") for points in ([], [1, 1], [1, 1, 5, 5], [1, 1, 5, 5, 3], "abcdef")),
        ([[0, 0, 1e9, 0, 0, 1e9]], r"coordinate 1000000000.0 must be a number between -200 and 200"),
        ([[0, 0, math.nan, 5, 7, 3]], "coordinate nan"),
        ([[0, 0, -math.inf, 5, 7, 3]], "coordinate -inf"),
        ([[0, 0, 10**400, 5, 7, 3]], "coordinate 1000"),
        ([["0", "0", "5", "5", "7", "3"]], "coordinate '0'"),
        ([[-200, -200, 200, 200] * 10_000], "pixels long, at most 2097152"),
    ],
)
def test_import_rejects_invalid_segmentations(
    segmentation: Any, message: str, annotations: Path, tmp_path: Path
) -> None:
    """In a separate process: some of them would crash pycocotools."""
    entries = [{"image_id": 7, "segmentation": SQUARE}, {"image_id": 7, "segmentation": segmentation}]
    results = write_json(tmp_path / "results.json", entries)
    command = ("import", results, "--annotations", annotations, "--output", tmp_path / "new")
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        error = pool.submit(error_of, *command).result()
    assert re.search(rf"entry 1 of .*results.json, of image 7: .*{message}", error)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([(1, "a.jpg", 12), (2, "a.png", 12)], "has two images with the key 'a'"),
        ([(1, "a.jpg", 12), (1, "b.jpg", 12)], "has b.jpg with the id 1"),
        ([([1], "a.jpg", 12)], r"has a.jpg with the id \[1\]"),
        ([(1, None, 12)], "file_name None is not text"),
        ([(1, "a.jpg", 0)], "has a.jpg with the invalid size 0 x 20"),
        ([(1, "a.jpg", math.inf)], "is not a COCO json whose images"),
        ([(1, "a\n.jpg", 12)], "cannot be a key"),
        ([(1, "../../x.jpg", 12)], "is not under"),
    ],
)
def test_invalid_images_are_rejected(images: list[Any], message: str, cache: Path, tmp_path: Path) -> None:
    content = [{"id": i, "file_name": name, "height": height, "width": 20} for i, name, height in images]
    listed = ("--annotations", write_json(tmp_path / "list.json", {"images": content}))
    results = write_json(tmp_path / "results.json", [])
    for command in (("import", results, "--output", tmp_path / "new"), ("export", cache, "--output", tmp_path / "out")):
        assert re.search(f"list.json.*{message}", error_of(*command, *listed), re.DOTALL)


def test_import_rejects_invalid_files(annotations: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "new")
    results = write_json(tmp_path / "results.json", [])
    assert "give --annotations" in error_of("import", results, *output)
    output = ("--annotations", annotations, *output)
    assert "absent.json cannot be read" in error_of("import", tmp_path / "absent.json", *output)
    assert "give --panoptic" in error_of("import", annotations, *output)


def panoptic(tmp_path: Path, segments: list[dict[str, Any]]) -> tuple[Path, Path]:
    """A panoptic json of one image with void, segment 5 and segment 300, and the folder of its PNG."""
    ids = np.zeros(SIZE, np.int64)
    ids[:, 4:10], ids[:, 10:] = 5, 300
    folder = tmp_path / "pngs"
    folder.mkdir()
    Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)).save(folder / "a.png")
    entry = {"image_id": 7, "file_name": "a.png", "segments_info": segments}
    content = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [entry], "categories": []}
    return write_json(tmp_path / "panoptic.json", content), folder


def test_import_panoptic(tmp_path: Path) -> None:
    file, folder = panoptic(tmp_path, [{"id": 5, "category_id": 2}, {"id": 300, "category_id": 1}])
    command = ("import", file, "--panoptic", folder)
    assert run(*command, "--output", tmp_path / "plain") == 0
    patches = PatchCache(tmp_path / "plain")["a"]
    assert patches.areas.tolist() == [72, 120]
    assert patches.source.tolist() == [0, 0]
    assert run(*command, "--keep-labels", "--output", tmp_path / "labelled") == 0
    assert PatchCache(tmp_path / "labelled")["a"].source.tolist() == [1, 0]


def test_import_rejects_invalid_panoptic_files(tmp_path: Path) -> None:
    file, folder = panoptic(tmp_path, [{"id": 5, "category_id": [2]}])
    command = ("import", file, "--panoptic", folder, "--output", tmp_path / "new")
    assert "panoptic.json: category_id [2] is neither" in error_of(*command, "--keep-labels")
    assert "segments that" in error_of(*command)  # segment 300 is not listed
    nameless = write_json(tmp_path / "null.json", {"annotations": [{"file_name": None, "segments_info": []}]})
    assert "file_name None is not text" in error_of("import", nameless, *command[2:])
    (folder / "a.png").unlink()
    assert "a.png cannot be read as a panoptic PNG" in error_of(*command)
    content = json.loads(file.read_text())
    content["annotations"] *= 2
    write_json(file, content)
    assert "has two images with the key 'a'" in error_of(*command)
