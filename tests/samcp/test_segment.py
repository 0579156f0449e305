"""samcp segment: pictures, COCO files and label maps of images."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import demo
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from PIL import Image
from skimage import data

from proposal_cache import PatchCache
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_folder, read_image
from proposal_cache.generators.contours import ContourGenerator
from samcp import SAMCP, add_samcp_config, cli, model_zoo
from samcp.checkpoint import Checkpointer
from samcp.commands.segment import find_images
from samcp.data.ground_truth import read_label_map, read_panoptic_ids
from samcp.modeling.inference import Inference, Predictions
from samcp.result import Result
from samcp.vocabulary import Vocabulary
from tests.conftest import Synthetic

CONFIG = Path(__file__).parents[2] / "configs" / "miniature" / "panoptic.yaml"


def save_model(folder: Path, **keys: object) -> Path:
    """Save a checkpoint of random weights with all thresholds at 0, and return its path."""
    cfg: CfgNode = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = ("synthetic_train",), str(folder)
    thresholds = [f"MODEL.SAMCP.TEST.{name}_THRESHOLD" for name in ("SCORE", "AFFINITY", "OVERLAP")]
    keys = {**dict.fromkeys(thresholds, 0.0), **{key.replace("__", "."): value for key, value in keys.items()}}
    cfg.merge_from_list([part for item in keys.items() for part in item])
    torch.manual_seed(0)
    Checkpointer(SAMCP(cfg), cfg).save("model_final")
    return folder / "model_final.pth"


def run(*arguments: object) -> None:
    cli.main(["segment", *map(str, arguments)])


def test_panoptic_files_of_given_vocabulary(
    synthetic: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = save_model(tmp_path), tmp_path / "out"
    where = (synthetic.folder / "val", "--patches", synthetic.val_patches, "--output", out)
    run("--weights", weights, *where, "--words", "disc, sky~, ring")
    assert str(out) in capsys.readouterr().out
    content = json.loads((out / "panoptic.json").read_text())
    assert [(c["name"], c["isthing"]) for c in content["categories"]] == [("disc", 1), ("sky", 0), ("ring", 1)]
    assert len(content["images"]) == len(content["annotations"]) == 4
    assert any(annotation["segments_info"] for annotation in content["annotations"])
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        ids = read_panoptic_ids(str(out / "panoptic" / annotation["file_name"]))
        assert ids.shape == (image["height"], image["width"])
        assert {s["id"]: s["area"] for s in annotation["segments_info"]} == {
            i: int((ids == i).sum()) for i in np.unique(ids).tolist() if i
        }
        assert Image.open(out / f"{image['id']}.jpg").size >= (image["width"], image["height"])


def test_confidence_threshold_and_what_was_found(
    synthetic: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_model(tmp_path)
    image = sorted((synthetic.folder / "val").iterdir())[0]
    where = (image, "--weights", weights, "--patches", synthetic.val_patches, "--output", tmp_path / "out")
    run(*where, "--words", "disc, ring")
    assert re.search(rf"^{image.stem}: (\d+ disc|\d+ ring)", capsys.readouterr().out)
    run(*where, "--words", "disc, ring", "--confidence-threshold", "1")
    assert re.search(rf"^{image.stem}: nothing found \(best: \w+ 0\.\d+, threshold 1\)", capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"][0]["segments_info"] == []
    with pytest.raises(SystemExit):
        run(*where, "--confidence-threshold", "high")
    assert "must be a number from 0 to 1, not 'high'" in capsys.readouterr().err


def test_semantic_model_writes_label_maps(synthetic: Synthetic, tmp_path: Path) -> None:
    only = {"INSTANCE_QUERIES": False, "SEMANTIC_QUERIES": "all", "TEST.PANOPTIC_ON": False, "TEST.INSTANCE_ON": False}
    weights = save_model(tmp_path, **{f"MODEL.SAMCP.{key}": value for key, value in only.items()})
    where = (synthetic.folder / "val", "--patches", synthetic.val_patches, "--output", tmp_path / "out")
    run("--weights", weights, *where, "--words", "disc, sky~, ring")
    assert not (tmp_path / "out" / "panoptic.json").exists()
    maps = [read_label_map(str(path)) for path in sorted((tmp_path / "out" / "semantic").iterdir())]
    assert len(maps) == 4
    assert set(np.unique(maps).tolist()) <= {0, 1, 2, 255}


def test_label_map_of_many_classes_has_16_bits(synthetic: Synthetic, tmp_path: Path) -> None:
    patches = PatchCache(synthetic.val_patches)["val_00000"]
    names = tuple(f"kind {i}" for i in range(300))
    predictions = Predictions(
        semantic_classes=torch.tensor([299]),
        semantic_scores=torch.ones(1),
        semantic_affinity=torch.ones(1, len(patches)),
        instance_scores=torch.zeros(0, 300),
        instance_affinity=torch.zeros(0, len(patches)),
    )
    inference = Inference(thing_classes=[], num_classes=300)
    pixels = read_image(synthetic.folder / "val" / "val_00000.jpg")
    result = Result(Vocabulary(names, (False,) * 300), pixels, patches, predictions, inference, has_instances=False)
    files = ("val_00000.jpg", "semantic/val_00000.png", "classes.json")
    assert result.save(tmp_path, "val_00000") == [tmp_path / file for file in files]
    assert json.loads((tmp_path / "classes.json").read_text())[299] == {"id": 299, "name": names[299], "isthing": 0}
    labels = read_label_map(str(tmp_path / "semantic" / "val_00000.png"))
    assert set(np.unique(labels).tolist()) <= {299, 65535}
    assert (labels == 299).any()


def test_errors(synthetic: Synthetic, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "beach.jpg")
    where = ("--patches", synthetic.val_patches, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"lacks 1 of 1 images, for example beach; repeat the command that generated"):
        run("--weights", tmp_path / "no.pth", tmp_path / "photos", *where)
    where = (synthetic.folder / "val", *where)
    with pytest.raises(
        SystemExit, match=r"error: .*no\.pth: no such checkpoint, and none of the shipped models: samcp-"
    ):
        run("--weights", tmp_path / "no.pth", *where)
    weights = save_model(tmp_path)
    with pytest.raises(SystemExit, match=r"error: device 'what' is not available; try cpu"):
        run("--weights", weights, *where, "--device", "what")
    with pytest.raises(SystemExit, match=r"error: .*Not a directory"):
        run("--weights", weights, *where[:-1], weights / "out")
    with pytest.raises(SystemExit, match=r"error: .*has not learned 'kite' .near: nothing.; it knows"):
        run("--weights", weights, *where, "--words", "kite")
    with pytest.raises(
        SystemExit, match=r"error: vocabulary: there are no words"
    ):  # for example, from an unset shell variable
        run("--weights", weights, *where, "--words", "")


@pytest.mark.parametrize("inside", [".", "result", "../photos", "link"])
def test_rejects_output_inside_image_folder(synthetic: Synthetic, tmp_path: Path, inside: str) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(synthetic.folder / "val", photos)
    (photos / "link").symlink_to(photos)
    before = {path: path.read_bytes() for path in photos.glob("*.jpg")}
    where = (photos, "--patches", synthetic.val_patches, "--output", photos / inside)
    with pytest.raises(SystemExit, match="is inside the folder of the images"):
        run("--weights", tmp_path / "no.pth", *where)
    assert {path: path.read_bytes() for path in photos.glob("*.jpg")} == before


def test_image_of_another_size_is_reported_before_inference(synthetic: Synthetic, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(synthetic.folder / "val", photos)
    Image.new("RGB", (30, 20)).save(photos / "val_00002.jpg")
    where = (photos, "--patches", synthetic.val_patches, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"val_00002\.jpg is 30 x 20 pixels, but its patches in .* are of"):
        run("--weights", save_model(tmp_path), *where)
    assert not (tmp_path / "out").exists()


def test_exif_orientation_equal_names_and_broken_images(tmp_path: Path) -> None:
    """Rotated by EXIF, equal file names in two folders, one broken file; with a model of instances only."""
    photos = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    for folder in ("a", "b"):
        (photos / folder).mkdir(parents=True)
        Image.new("RGB", (120, 80), (200, 30, 30)).save(photos / folder / "x.jpg", exif=exif)
    (photos / "broken.jpg").write_bytes(b"no image")
    generate(from_folder(photos), ContourGenerator(parts=8), tmp_path / "patches", "photos", progress=False)
    only = {"SEMANTIC_QUERIES": "stuff", "TEST.PANOPTIC_ON": False, "TEST.SEMANTIC_ON": False}
    weights = save_model(tmp_path, **{f"MODEL.SAMCP.{key}": value for key, value in only.items()})
    where = (photos, "--patches", tmp_path / "patches", "--output", tmp_path / "out")
    run("--weights", weights, *where)
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [(i["file_name"], i["height"], i["width"]) for i in content["images"]] == [
        ("a/x.jpg", 120, 80),
        ("b/x.jpg", 120, 80),
    ]
    assert all(s["iscrowd"] == 0 for a in content["annotations"] for s in a["segments_info"])
    assert Image.open(tmp_path / "out" / "a" / "x.jpg").height > Image.open(tmp_path / "out" / "a" / "x.jpg").width
    assert not (tmp_path / "out" / "semantic").exists()


def test_patches_are_made_once_per_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy under another name and in another folder needs no new patches; a damaged image is skipped."""
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path / "cache"))
    weights = save_model(tmp_path)
    photos = [tmp_path / name for name in ("one.jpg", "damaged.jpg", "folder/copy.jpg")]
    photos[2].parent.mkdir()
    Image.fromarray(data.chelsea()).resize((90, 60)).save(photos[0])
    photos[1].write_bytes(b"no image")
    shutil.copy(photos[0], photos[2])
    calls = []
    original = ContourGenerator.__call__
    monkeypatch.setattr(
        ContourGenerator, "__call__", lambda self, image: (calls.append(image.shape), original(self, image))[1]
    )
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run(*photos[:2], "--weights", weights, "--output", tmp_path / "out", "--open")
    captured = capsys.readouterr()
    assert "skipped: " in captured.err
    assert f"wrote 1 picture to {tmp_path / 'out'}, the first one is {tmp_path / 'out' / 'one.jpg'}" in captured.out
    assert opened == [(tmp_path / "out" / "one.jpg").as_uri()]
    run(photos[2].parent, "--weights", weights, "--output", tmp_path / "other")
    assert calls == [(60, 90, 3)]
    assert (tmp_path / "other" / "copy.jpg").is_file()


def test_instances_in_cocos_result_format(synthetic: Synthetic, tmp_path: Path) -> None:
    where = (synthetic.folder / "val", "--patches", synthetic.val_patches, "--output", tmp_path / "out")
    run(*where, "--weights", save_model(tmp_path), "--task", "instance", "--words", "disc, ring")
    results = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert {r["image_id"] for r in results} == {f"val_0000{i}" for i in range(4)}
    assert {r["category_id"] for r in results} == {0, 1}
    assert mask_util.area(results[0]["segmentation"]) > 0


def test_missing_image_and_equal_names(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / folder / "x.jpg")
    with pytest.raises(SystemExit, match=r"c\.jpg: no such file or folder"):
        run(tmp_path / "c.jpg")
    with pytest.raises(SystemExit, match=r"two images with the key 'x'"):
        run(tmp_path / "a" / "x.jpg", tmp_path / "b")


def test_patterns(tmp_path: Path) -> None:
    for name in ("2023/a.jpg", "2024/a.jpg", "2024/b.PNG", "2024/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name, "PNG")
    found = [(image.key, image.url) for image in find_images([f"{tmp_path}/*/*"])]
    assert found == [(f"{key[:-4]}", f"{tmp_path / key}") for key in ("2023/a.jpg", "2024/a.jpg", "2024/b.PNG")]
    assert [image.key for image in find_images([f"{tmp_path}/**/b*"])] == ["2024/b"]
    Image.new("RGB", (9, 9)).save(tmp_path / "b.jpg")
    with pytest.raises(SystemExit, match=r"the picture would replace .*b\.jpg; choose another folder"):
        run(f"{tmp_path}/*.jpg", "--output", tmp_path)
    with pytest.raises(SystemExit, match=r"\*\.tif: no image matches"):
        run(f"{tmp_path}/*/*.tif")


def test_weights_from_a_url_are_downloaded_once(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path / "cache"))
    weights = save_model(tmp_path)
    where = (synthetic.folder / "val", "--patches", synthetic.val_patches, "--output", tmp_path / "out")
    run(*where, "--weights", weights.as_uri())
    assert f"sha256 {hashlib.sha256(weights.read_bytes()).hexdigest()}" in capsys.readouterr().err
    weights.unlink()
    run(*where, "--weights", weights.as_uri())
    assert "sha256" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"error: file:\S*gone\.pth: cannot be downloaded"):
        run(*where, "--weights", (tmp_path / "gone.pth").as_uri())


def test_unknown_word_is_reported_before_patches_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContourGenerator, "__call__", lambda *args: pytest.fail("makes patches"))
    Image.new("RGB", (60, 40)).save(tmp_path / "x.jpg")
    with pytest.raises(SystemExit, match=r"error: .*elefant.*near: elephant"):
        run(tmp_path / "x.jpg", "--words", "elefant")


def test_task_of_a_semantic_model_is_checked_before_patches_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContourGenerator, "__call__", lambda *args: pytest.fail("makes patches"))
    Image.new("RGB", (60, 40)).save(tmp_path / "x.jpg")
    only = {"INSTANCE_QUERIES": False, "SEMANTIC_QUERIES": "all", "TEST.PANOPTIC_ON": False, "TEST.INSTANCE_ON": False}
    weights = save_model(tmp_path, **{f"MODEL.SAMCP.{key}": value for key, value in only.items()})
    with pytest.raises(SystemExit, match=r"--task panoptic: .* has no instances; use --task semantic"):
        run(tmp_path / "x.jpg", "--weights", weights, "--task", "panoptic")


def test_shipped_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["models"])
    printed = capsys.readouterr().out
    assert [line.partition(":")[0] for line in printed.splitlines() if line.startswith("samcp-")] == model_zoo.names()


def test_demo_by_detectron2s_convention(synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path / "cache"))
    picture = synthetic.folder / "val" / "val_00000.jpg"
    options = ["--config-file", str(CONFIG), "--input", str(picture), "--output", str(tmp_path / "out")]
    weights = str(save_model(tmp_path))
    monkeypatch.setattr(
        sys,
        "argv",
        ["demo.py", *options, "--opts", "MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "True"],
    )
    demo.main()
    assert (tmp_path / "out" / "val_00000.jpg").is_file()
