"""python -m proposal_cache, command by command."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from proposal_cache import CacheWriter, PatchCache, Patches
from proposal_cache.cli import main
from proposal_cache.visualize import draw_patches

SIZE = (12, 20)  # height, width


def halves(at: int, **columns: Any) -> Patches:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :, :at], masks[1, :, at:] = True, True
    return Patches.from_masks(masks, **columns)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with CacheWriter(tmp_path / "cache", {"name": "left-right", "version": 3}, "toy") as writer:
        writer.add("a", halves(5, predicted_iou=[0.5, 0.75]))
        writer.add("sub/b", halves(10))
        writer.add_failure("bad", "bad.png: the file is empty")
    return tmp_path / "cache"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """COCO json of the cache's images."""
    names = {7: "a.jpg", 9: "sub/b.jpg"}
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in names.items()]
    return write_json(
        tmp_path / "images.json", {"images": images, "categories": [{"id": 4, "name": "cat"}, {"id": 6, "name": "dog"}]}
    )


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def run(*arguments: object) -> int:
    """Exit status of a command that ends without an error message."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code is None or isinstance(ended.value.code, int), ended.value.code
    return ended.value.code or 0


def error_of(*arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert str(ended.value.code).startswith("error: ")
    return str(ended.value.code)


def test_as_a_module_its_help_lists_the_commands() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "proposal_cache", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("info", "verify", "show", "merge", "import", "export"):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["info", "verify", "show", "merge", "import", "export"])
def test_help_of_each_command_gives_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"example:\n  python -m proposal_cache {command}" in capsys.readouterr().out


def test_info(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", cache) == 0
    text = capsys.readouterr().out
    for part in ("toy", '"left-right"', "2, first: a, sub/b", "4, 2.0 per image", "100.0 %", "bad: bad.png: the file"):
        assert part in text


def test_no_cache_there(tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in error_of("info", tmp_path / "absent")


def test_verify_names_the_bad_shard_and_what_to_do(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", cache) == 0
    assert "3 files read, 0 bad" in capsys.readouterr().out
    shard = next(cache.glob("shard-*.h5"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run("verify", cache) == 1
    text = capsys.readouterr().out
    assert f"BAD {shard.name}" in text
    assert "delete it and run the generator again" in text


def test_show_draws_on_the_image(cache: Path, tmp_path: Path) -> None:
    Image.new("RGB", SIZE[::-1], (0, 0, 250)).save(tmp_path / "a.png")
    assert run("show", cache, "a", "--image", tmp_path / "a.png", "--output", tmp_path / "out.png") == 0
    picture = np.asarray(Image.open(tmp_path / "out.png"))
    assert picture.shape == (*SIZE, 3)
    assert (picture[0, 0] != picture[0, 10]).any()


def test_show_says_what_is_wrong(cache: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out.png")
    assert "no patches of 'x'" in error_of("show", cache, "x", *output)
    Image.new("RGB", (3, 3)).save(tmp_path / "small.png")
    assert "12 x 20 pixels" in error_of("show", cache, "a", "--image", tmp_path / "small.png", *output)
    assert "out.what cannot be written" in error_of("show", cache, "a", "--output", tmp_path / "out.what")


def test_picture_keeps_small_patches_in_front_and_uncovered_pixels_as_they_are() -> None:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 4:7, 4:7] = True
    masks[1, :, :15] = True
    image = np.full((*SIZE, 3), 10, np.uint8)
    picture = draw_patches(Patches.from_masks(masks), image)
    assert (picture[:, 16:] == 10).all()
    assert (picture[5, 5] != picture[5, 2]).any()
    assert (picture[4, 4] == 255).all()  # outline
    assert (draw_patches(Patches.empty(*SIZE)) == 0).all()


def test_merge_of_other_images(cache: Path, tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "more", {"name": "left-right", "version": 3}, "toy") as writer:
        writer.add("c", halves(3))
    assert run("merge", cache, tmp_path / "more", "--output", tmp_path / "all") == 0
    merged = PatchCache(tmp_path / "all")
    assert list(merged) == ["a", "c", "sub/b"]
    assert len(merged.manifest.generators) == 1
    assert merged["a"].predicted_iou.tolist() == [0.5, 0.75]
    assert "by the same generator" in error_of("merge", cache, cache, "--output", tmp_path / "twice")


def test_merge_of_other_generators_keeps_them_apart(cache: Path, tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "other", {"name": "other"}, "toy2") as writer:
        writer.add("a", halves(8))
    command = ("merge", cache, tmp_path / "other", "--output", tmp_path / "both")
    assert "toy, toy2" in error_of(*command)
    assert run(*command, "--dataset", "toy") == 0
    both = PatchCache(tmp_path / "both")
    assert [g["name"] for g in both.manifest.generators] == ["left-right", "other"]
    assert both["a"].source.tolist() == [0, 0, 1, 1]
    assert both["a"].areas.tolist() == [60, 180, 96, 144]
    assert both["sub/b"].source.tolist() == [0, 0]


def test_export_and_import_again(cache: Path, annotations: Path, tmp_path: Path) -> None:
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


def test_export_by_key(cache: Path, tmp_path: Path) -> None:
    assert run("export", cache, "--output", tmp_path / "out.json") == 0
    assert [e["image_id"] for e in json.loads((tmp_path / "out.json").read_text())] == ["a", "a", "sub/b", "sub/b"]


def test_import_keeps_labels_as_sources(annotations: Path, tmp_path: Path) -> None:
    square = [2, 3, 8, 3, 8, 9, 2, 9]
    uncompressed = {"size": list(SIZE), "counts": [12, 24, 12 * 20 - 36]}
    entries = [
        {"image_id": 7, "category_id": 6, "segmentation": [square]},
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
    mask = coco.encode(np.asfortranarray(np.eye(*SIZE, dtype=np.uint8)))
    entry = {"image_id": 9, "segmentation": {"size": list(SIZE), "counts": mask["counts"].decode()}, "score": 0.9}
    results = write_json(tmp_path / "results.json", [entry])
    command = ("import", results, "--annotations", annotations, "--add-to", cache, "--output", tmp_path / "both")
    assert run(*command) == 0
    both = PatchCache(tmp_path / "both")
    assert both.manifest.dataset == "toy"
    assert both["sub/b"].source.tolist() == [0, 0, 1]
    assert both["sub/b"].areas.tolist() == [120, 120, 12]
    assert not list(tmp_path.glob(".import-*"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 5, "segmentation": []}, "image_id 5 is not among the images"),
        ({"image_id": [], "segmentation": []}, "entry 0"),
        ({"image_id": 7}, "has no segmentation"),
        ("what", "entry 0"),
        ({"image_id": 7, "segmentation": {"size": [3, 3], "counts": "09"}}, r"its size is \[3, 3\]"),
        ({"image_id": 7, "segmentation": {"size": list(SIZE), "counts": "zzzz"}}, "image 7"),
        ({"image_id": 7, "segmentation": {"size": list(SIZE), "counts": [5, 10**9]}}, "its counts are not those"),
        ({"image_id": 7, "segmentation": {"size": list(SIZE), "counts": [-1, 241]}}, "its counts are not those"),
        ({"image_id": 7, "segmentation": {}}, "image 7"),
    ],
)
def test_import_refuses_bad_results(entry: Any, message: str, annotations: Path, tmp_path: Path) -> None:
    results = write_json(tmp_path / "results.json", [entry])
    text = error_of("import", results, "--annotations", annotations, "--output", tmp_path / "new")
    assert "results.json" in text
    assert re.search(message, text)


def test_import_refuses_bad_files(annotations: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "new")
    results = write_json(tmp_path / "results.json", [])
    assert "give --annotations" in error_of("import", results, *output)
    assert "absent.json cannot be read" in error_of(
        "import", tmp_path / "absent.json", "--annotations", annotations, *output
    )
    assert "give --panoptic" in error_of("import", annotations, "--annotations", annotations, *output)
    escaping = {"images": [{"id": 1, "file_name": "../../x.jpg", "height": 2, "width": 2}]}
    bad = write_json(tmp_path / "bad.json", escaping)
    assert "does not lie under" in error_of("import", results, "--annotations", bad, *output)


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


def test_import_of_panoptic_pngs(tmp_path: Path) -> None:
    file, folder = panoptic(tmp_path, [{"id": 5, "category_id": 2}, {"id": 300, "category_id": 1}])
    command = ("import", file, "--panoptic", folder)
    assert run(*command, "--output", tmp_path / "plain") == 0
    patches = PatchCache(tmp_path / "plain")["a"]
    assert patches.areas.tolist() == [72, 120]
    assert patches.source.tolist() == [0, 0]
    assert run(*command, "--keep-labels", "--output", tmp_path / "labelled") == 0
    assert PatchCache(tmp_path / "labelled")["a"].source.tolist() == [1, 0]


def test_panoptic_json_and_pngs_that_do_not_fit(tmp_path: Path) -> None:
    file, folder = panoptic(tmp_path, [{"id": 5, "category_id": 2}])
    command = ("import", file, "--panoptic", folder, "--output", tmp_path / "new")
    assert "segments that" in error_of(*command)
    (folder / "a.png").unlink()
    assert "a.png cannot be read as a panoptic PNG" in error_of(*command)
