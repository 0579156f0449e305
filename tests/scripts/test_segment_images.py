"""scripts/segment_images.py: pictures, COCO panoptic files and label maps of a folder of images."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from proposal_cache import PatchCache
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import ImageFile, from_folder
from proposal_cache.generators.contours import ContourGenerator
from samcp import SAMCP, add_samcp_config
from samcp.checkpoint import Checkpointer
from samcp.commands.segment_images import write_answer
from samcp.data.ground_truth import read_label_map, read_panoptic_ids
from samcp.modeling.inference import Inference, Predictions
from samcp.predictor import Answer
from samcp.vocabulary import Vocabulary
from tests.conftest import Synthetic

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import segment_images

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


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["segment_images.py", *map(str, arguments)])
    segment_images.main()


def test_panoptic_files_of_given_vocabulary(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = save_model(tmp_path), tmp_path / "out"
    where = ("--images", synthetic.folder / "val", "--patches", synthetic.val_patches, "--output", out)
    run(monkeypatch, "--weights", weights, *where, "--vocabulary", "disc, sky~, ring")
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


def test_semantic_model_writes_label_maps(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {"INSTANCE_QUERIES": False, "SEMANTIC_QUERIES": "all", "TEST.PANOPTIC_ON": False, "TEST.INSTANCE_ON": False}
    weights = save_model(tmp_path, **{f"MODEL.SAMCP.{key}": value for key, value in only.items()})
    where = ("--images", synthetic.folder / "val", "--patches", synthetic.val_patches, "--output", tmp_path / "out")
    run(monkeypatch, "--weights", weights, *where, "--vocabulary", "disc, sky~, ring")
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
    answer = Answer(Vocabulary(names, (False,) * 300), patches, predictions, inference, has_instances=False)
    image = ImageFile("val_00000", str(synthetic.folder / "val" / "val_00000.jpg"))
    assert write_answer(answer, image, tmp_path) == []
    labels = read_label_map(str(tmp_path / "semantic" / "val_00000.png"))
    assert set(np.unique(labels).tolist()) <= {299, 65535}
    assert (labels == 299).any()


def test_errors(synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "beach.jpg")
    where = ("--patches", synthetic.val_patches, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"lacks 1 of 1 images, for example beach; repeat the command that generated"):
        run(monkeypatch, "--weights", tmp_path / "no.pth", "--images", tmp_path / "photos", *where)
    where = ("--images", synthetic.folder / "val", *where)
    with pytest.raises(SystemExit, match=r"error: .*no\.pth: no such checkpoint"):
        run(monkeypatch, "--weights", tmp_path / "no.pth", *where)
    weights = save_model(tmp_path)
    with pytest.raises(SystemExit, match=r"error: device 'what' is not available; try cpu"):
        run(monkeypatch, "--weights", weights, *where, "--device", "what")
    with pytest.raises(SystemExit, match=r"error: .*Not a directory"):
        run(monkeypatch, "--weights", weights, *where[:-1], weights / "out")
    with pytest.raises(SystemExit, match=r"error: .*has learned the classes .*, not kite"):
        run(monkeypatch, "--weights", weights, *where, "--vocabulary", "kite")
    with pytest.raises(SystemExit, match=r"error: .*vocabulary ''"):  # for example, from an unset shell variable
        run(monkeypatch, "--weights", weights, *where, "--vocabulary", "")


@pytest.mark.parametrize("inside", [".", "result", "../photos", "link"])
def test_rejects_output_inside_image_folder(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(synthetic.folder / "val", photos)
    (photos / "link").symlink_to(photos)
    before = {path: path.read_bytes() for path in photos.glob("*.jpg")}
    where = ("--images", photos, "--patches", synthetic.val_patches, "--output", photos / inside)
    with pytest.raises(SystemExit, match="is inside the folder of the images"):
        run(monkeypatch, "--weights", tmp_path / "no.pth", *where)
    assert {path: path.read_bytes() for path in photos.glob("*.jpg")} == before


def test_image_of_another_size_is_reported_before_inference(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(synthetic.folder / "val", photos)
    Image.new("RGB", (30, 20)).save(photos / "val_00002.jpg")
    where = ("--images", photos, "--patches", synthetic.val_patches, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"val_00002\.jpg is 30 x 20 pixels, but its patches in .* are of"):
        run(monkeypatch, "--weights", save_model(tmp_path), *where)
    assert not (tmp_path / "out").exists()


def test_exif_orientation_equal_names_and_broken_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    where = ("--images", photos, "--patches", tmp_path / "patches", "--output", tmp_path / "out")
    run(monkeypatch, "--weights", weights, *where)
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [(i["file_name"], i["height"], i["width"]) for i in content["images"]] == [
        ("a/x.jpg", 120, 80),
        ("b/x.jpg", 120, 80),
    ]
    assert all(s["iscrowd"] == 0 for a in content["annotations"] for s in a["segments_info"])
    assert Image.open(tmp_path / "out" / "a" / "x.jpg").height > Image.open(tmp_path / "out" / "a" / "x.jpg").width
    assert not (tmp_path / "out" / "semantic").exists()
