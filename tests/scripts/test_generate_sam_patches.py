"""scripts/generate_sam_patches.py as a command."""

import ast
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

from proposal_cache import CacheError, PatchCache
from proposal_cache.generators.sam import SamGenerator, SamParameters
from proposal_cache.generators.sam2 import Sam2Parameters

SCRIPT = Path(__file__).parents[2] / "scripts/generate_sam_patches.py"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of output about a failure."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def run_here(*arguments: object) -> str | int | None:
    """Run the script in this process, which has imported torch, and return its exit status or message; None for 0."""
    command = [str(SCRIPT), *map(str, arguments)]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            return end.code or None
        finally:
            signal.signal(signal.SIGTERM, before)
    return None


def error_here(*arguments: object) -> str:
    """Return the error message of a run in this process."""
    message = run_here(*arguments)
    assert isinstance(message, str)
    assert message.startswith("error: ")
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images/sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def test_folder_with_a_broken_image(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.jpg").touch()
    result = run("--images", folder, "--output", tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert "patches by the generator contours; for those of SAM, give --checkpoint FILE" in result.stderr
    assert "2 images, 1 failed" in result.stdout
    assert "100.0 % of pixels covered" in result.stdout
    assert "broken.jpg cannot be read as an image: the file is empty" in result.stderr
    assert list(PatchCache(tmp_path / "cache")) == ["a", "sub/b"]
    assert PatchCache(tmp_path / "cache").manifest.dataset == "images"


def test_crops_and_refinement(folder: Path, tmp_path: Path) -> None:
    command = ("--images", folder, "--generator", "contours", "--crops", 2, "--refine")
    result = run(*command, "--output", tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    generators = PatchCache(tmp_path / "cache").manifest.generators
    names = [generator["name"] for generator in generators]
    assert names == ["crops", "crops", "refine"]
    assert generators[2]["generator"]["name"] == "contours"  # windows are not split into crops
    assert "crops must be from 1 to 256, not 300" in error_here(*command, "--crops", 300, "--output", tmp_path / "new")


def test_boxes_of_the_user(folder: Path, tmp_path: Path) -> None:
    pixels = np.full((60, 120, 3), 100, np.uint8)
    pixels[8:20, 8:20], pixels[40:52, 100:112] = 180, 120
    Image.fromarray(pixels).save(folder / "a.png")
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"a": [[4, 4, 24, 24], [96, 36, 116, 56]]}')
    command = ("--images", folder, "--generator", "contours", "--parts", 2, "--patches", 2, "--boxes", boxes)
    command += ("--output", tmp_path / "cache")
    assert run_here(*command) is None
    patches = PatchCache(tmp_path / "cache")["a"]
    assert patches.boxes[patches.source == 1].tolist() == [[8, 8, 20, 20]]  # the other is found without boxes
    boxes.write_text('{"a": [[2, 2, 20, 21]]}')
    assert "boxes_sha256 is " in error_here(*command)
    boxes.write_text('{"b": []}')
    assert "1 keys that are not images ('b')" in error_here(*command)


def test_all_images_broken(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/broken.jpg").touch()
    result = run("--images", tmp_path / "images", "--generator", "contours", "--output", tmp_path / "cache")
    assert result.returncode == 1
    assert "0 images, 1 failed" in result.stdout


def test_registered_dataset(tmp_path: Path) -> None:
    for kind in ("images", "annotations"):
        (tmp_path / "camvid" / kind / "val").mkdir(parents=True)
    Image.new("RGB", (32, 24)).save(tmp_path / "camvid/images/val/x.jpg")
    Image.new("L", (32, 24)).save(tmp_path / "camvid/annotations/val/x.png")
    command = ("--dataset", "camvid_val", "--generator", "contours", "--output", tmp_path / "cache")
    result = run(*command, DETECTRON2_DATASETS=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert list(PatchCache(tmp_path / "cache")) == ["x"]


@pytest.mark.parametrize(
    ("send", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"]
)
def test_interrupted_while_workers_run(tmp_path: Path, send: Callable[[int, int], None], number: int) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(20):
        blocks = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        Image.fromarray(blocks).save(tmp_path / f"images/{i:02}.png")
    command = [sys.executable, str(SCRIPT), "--images", str(tmp_path / "images"), "--generator", "contours"]
    command += ["--shard-size", "2", "--output", str(tmp_path / "cache")]
    process = subprocess.Popen(
        [*command, "--workers", "2"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not list((tmp_path / "cache").glob("shard-*.h5")):
        time.sleep(0.01)
    send(process.pid, number)  # a terminal sends Ctrl-C to the workers too
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "interrupted: " in stderr
    assert "Traceback" not in stderr
    assert 0 < len(PatchCache(tmp_path / "cache")) < 20
    result = run(*command[2:])
    assert result.returncode == 0, result.stderr
    assert ": 20 images, " in result.stdout


@pytest.mark.slow
def test_sam_itself(folder: Path, tmp_path: Path) -> None:
    sam = sam_model_registry["vit_b"]()
    torch.save(sam.state_dict(), tmp_path / "vit_b.pth")
    thresholds = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0}
    options = ("--model-type", "vit_b", "--checkpoint", tmp_path / "vit_b.pth", "--points-per-side", 2)
    options += ("--pred-iou-thresh", -1, "--stability-score-thresh", 0)
    result = run("--images", folder, *options, "--output", tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    image = np.array(Image.open(folder / "a.png"))
    original = SamAutomaticMaskGenerator(sam, points_per_side=2, output_mode="coco_rle", **thresholds).generate(image)
    found = PatchCache(tmp_path / "cache")["a"]
    assert len(found) == len(original) > 0
    np.testing.assert_allclose(found.predicted_iou, [mask["predicted_iou"] for mask in original], atol=1e-4)


@pytest.mark.parametrize(
    ("generator", "option", "owners"),
    [
        ("sam2", "--dtype=bfloat16", "sam"),
        ("sam2", "--crop-n-layers=1", "sam"),
        ("sam", "--workers=2", "contours"),
        ("sam2", "--parts=9", "contours"),
        ("contours", "--model-type=vit_b", "sam2 or sam"),
    ],
)
def test_warning_about_options_of_other_generators(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], generator: str, option: str, owners: str
) -> None:
    run_here("--images", folder, "--output", tmp_path / "cache", "--generator", generator, option)
    warning = f"warning: {option.partition('=')[0]} is for --generator {owners}; it has no effect here"
    assert capsys.readouterr().err.splitlines().count(warning) == 1


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("--workers=abc", "must be a whole number, 1 or more, not 'abc'"),
        ("--shard-size=0", "must be a whole number, 1 or more, not '0'"),
        ("--crop-n-layers=-1", "must be a whole number, 0 or more, not '-1'"),
        ("--stability-score-thresh=nan", "must be a number, not 'nan'"),
        ("--box-nms-thresh=x", "must be a number, not 'x'"),
    ],
)
def test_invalid_values(option: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("--images", "absent", "--output", "x", option) == 2
    assert f"argument {option.partition('=')[0]}: {error}" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["foo", "mps", "cuda:x", "cuda:99"])
def test_unknown_devices(folder: Path, device: str) -> None:
    message = error_here("--images", folder, "--output", "x", "--checkpoint", "x.pth", "--device", device)
    assert f"--device {device}" in message
    assert "use " in message


def test_every_parameter_of_sam_is_an_option(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = runpy.run_path(str(SCRIPT))["_parser"]()
    helps = {action.dest: action.help for action in parser._actions}
    given: dict[str, object] = {}
    for field in fields(SamParameters):
        assert f"(default {round(field.default, 2):g})" in helps[field.name]
        given[field.name] = field.default + 1

    def build(**options: object) -> None:
        raise CacheError(repr({name: options[name] for name in options if name not in ("model_type", "checkpoint")}))

    monkeypatch.setattr(SamGenerator, "from_checkpoint", build)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    message = error_here("--images", folder, "--output", "x", "--checkpoint", "x", "--memory-budget=3", *options)
    options_of_sam = ast.literal_eval(message.removeprefix("error: "))
    assert options_of_sam == {"device": "cpu", "memory_budget": 3 << 20} | given
    assert error_here("--images", folder, "--output", "x", "--checkpoint", "x") == "error: {'device': 'cpu'}"
    assert {field.name: field.default for field in fields(Sam2Parameters)}.items() <= {
        field.name: field.default for field in fields(SamParameters)
    }.items()


def test_unknown_dataset_suggests_similar_names(tmp_path: Path) -> None:
    message = error_here("--dataset", "coco_2017_panoptic_val", "--generator", "contours", "--output", tmp_path)
    assert "'coco_2017_panoptic_val'" in message
    assert "coco_2017_val_panoptic" in message


def test_dataset_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.data import DatasetCatalog

    name = "test_dataset_without_files"
    DatasetCatalog.register(name, lambda: [json.loads((tmp_path / "absent/annotations.json").read_text())])
    monkeypatch.setenv("DETECTRON2_DATASETS", "/the/wrong/folder")
    try:
        message = error_here("--dataset", name, "--generator", "contours", "--output", tmp_path / "cache")
    finally:
        DatasetCatalog.pop(name)
    assert "DETECTRON2_DATASETS is /the/wrong/folder" in message
    assert "absent/annotations.json" in message


def test_missing_and_damaged_files_of_a_custom_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.data import DatasetCatalog

    from samcp.data.datasets.custom.register import VARIABLE

    monkeypatch.setenv(VARIABLE, "")
    command = ("--dataset", "generate_beach", "--output", tmp_path / "cache", "--register", tmp_path / "beach.yaml")
    assert "beach.yaml" in error_here(*command)
    (tmp_path / "images").mkdir()
    (tmp_path / "beach.yaml").write_text("splits: {generate_beach: {images: images, instances: train.json}}")
    (tmp_path / "train.json").write_text('{"images": [')
    try:
        assert "train.json" in error_here(*command)
    finally:
        DatasetCatalog.pop("generate_beach", None)


def test_truncated_json_of_a_dataset(tmp_path: Path) -> None:
    from detectron2.data import DatasetCatalog

    name = "test_truncated_json"
    DatasetCatalog.register(name, lambda: json.loads('[{"file_name": '))
    try:
        message = error_here("--dataset", name, "--generator", "contours", "--output", tmp_path / "cache")
    finally:
        DatasetCatalog.pop(name)
    assert f"dataset '{name}' cannot be read: JSONDecodeError" in message


def test_cache_made_with_other_parameters(folder: Path, tmp_path: Path) -> None:
    command = ("--images", folder, "--generator", "contours", "--output", tmp_path / "cache")
    assert run(*command).returncode == 0
    manifest = tmp_path / "cache/manifest.json"
    manifest.write_text(manifest.read_text().replace('"parts": 60', '"parts": 61'))
    message = error_of(run(*command))
    assert "parts is 61, not 60" in message
    assert str(tmp_path / "cache") in message


def test_moved_folder_with_its_old_name(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    command = ("--generator", "contours", "--output", tmp_path / "cache")
    assert run_here("--images", folder, *command) is None
    shutil.copy(next(moved.rglob("*.png")), moved / "new.png")
    assert f"its dataset is '{folder.name}', not 'moved'" in error_here("--images", moved, *command)
    assert run_here("--images", moved, "--name", folder.name, *command) is None
    assert "new" in PatchCache(tmp_path / "cache")
    assert run_here("--dataset", "x", "--name", "y", *command) == 2


def test_sam_without_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    message = error_here("--images", folder, "--generator", "sam", "--output", tmp_path / "cache")
    assert "--checkpoint" in message
    assert "--generator contours" in message


def test_sam_with_a_wrong_checkpoint(folder: Path, tmp_path: Path) -> None:
    command = ("--images", folder, "--output", tmp_path / "cache", "--checkpoint")
    assert "absent.pth" in error_here(*command, tmp_path / "absent.pth")
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, tmp_path / "b.pth")
    assert "is a checkpoint of vit_b, not vit_h" in error_here(*command, tmp_path / "b.pth")
