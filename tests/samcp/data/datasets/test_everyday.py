"""Objects of COCO, BSDS500 and CCP as one dataset, and learned words from its named part."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from proposal_cache.generation.sources import read_image
from samcp.commands import train_words
from samcp.data.datasets.catalog import register, unregister
from samcp.data.datasets.custom.register import VARIABLE, register_files
from samcp.data.datasets.everyday import named_regions, prepare
from samcp.data.datasets.everyday.compose import Composer, cut_out
from samcp.data.datasets.everyday.prepare import prepare_everyday
from samcp.data.files import write_image, write_json, write_label_map, write_panoptic_ids
from samcp.data.ground_truth import read_ground_truth
from samcp.errors import DataError
from samcp.modeling.naming.imagenet import ImageNetNamer, LearnedWords
from samcp.modeling.naming.words import word_table
from samcp.vocabulary import Vocabulary

SIZE = (64, 96)
NAMES = Vocabulary.load("coco").names


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Write five images of COCO, one of BSDS500 and four of CCP."""
    monkeypatch.setenv(VARIABLE, "")  # restored after registration, which changes it
    monkeypatch.setattr(prepare, "_COMPOSED", 3)
    categories = [{"id": i, "name": name, "isthing": int(i <= 80)} for i, name in enumerate(NAMES, start=1)]
    images, panoptic, instances = [], [], []
    for i in range(1, 6):
        color = np.zeros((*SIZE, 3), np.uint8)
        color[:, :48] = 255
        write_image(tmp_path / "coco" / "train2017" / f"{i}.jpg", color, "JPEG")
        ids = np.repeat(np.arange(1, 4, dtype=np.int32), 32)[None].repeat(SIZE[0], 0)
        write_panoptic_ids(tmp_path / "coco" / "panoptic_train2017" / f"{i}.png", ids)
        images.append({"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]})
        segments = [
            {"id": k, "category_id": c, "iscrowd": crowd, "area": 2048, "bbox": [32 * k - 32, 0, 32, 64]}
            for k, c, crowd in ((1, 1, 0), (2, NAMES.index("sky") + 1, 0), (3, 1, 1))
        ]
        panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
        instances.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "area": 2048,
                "bbox": [0, 0, 32, 64],
                "segmentation": [[0, 0, 32, 0, 32, 64, 0, 64]],
            }
        )
    for kind, annotations, classes in (("panoptic", panoptic, categories), ("instances", instances, categories[:80])):
        write_json(
            tmp_path / "coco" / "annotations" / f"{kind}_train2017.json",
            {"images": images, "annotations": annotations, "categories": classes},
        )

    blank = np.zeros((*SIZE, 3), np.uint8)
    write_image(tmp_path / "bsds500" / "images" / "train" / "12.jpg", blank, "JPEG")
    for k, regions in enumerate((1, 2, 4, 8, 16)):
        labels = (np.arange(SIZE[1]) * regions // SIZE[1] + 1).astype(np.uint8)[None].repeat(SIZE[0], 0)
        write_label_map(tmp_path / "bsds500" / "segmentations" / "train" / f"12_{k}.png", labels)
    for i in range(4):
        write_image(tmp_path / "ccp" / "images" / "train" / f"{i}.jpg", blank, "JPEG")
        labels = np.zeros(SIZE, np.uint8)
        labels[:32, 10:40], labels[32:, 10:40], labels[0, 0] = 5, 9, 3
        write_label_map(tmp_path / "ccp" / "annotations" / "train" / f"{i}.png", labels)
    yield tmp_path
    for name in (
        "everyday_train",
        "everyday_things_train",
        "everyday_composed_train",
        "everyday_objects_val",
        "everyday_named_train",
        "everyday_val",
        "everyday_words_train",
        "everyday_words_val",
    ):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_objects(base):
    found = prepare_everyday(base / "everyday")
    assert found == {
        "train": "6 images, 13 objects",
        "things": "5 images, 9 objects",
        "val": "1 images, 2 objects",
        "composed": found["composed"],
        "words_train": "0 images, 0 regions",  # none of the named photographs
        "words_val": "0 images, 0 regions",
    }
    register_files([base / "everyday" / "objects.yaml"])
    records = DatasetCatalog.get("everyday_train")
    areas = {}
    for record in records:
        assert Path(record["file_name"]).is_file()
        truth = read_ground_truth(record, SIZE, num_classes=1, ignore_label=255)
        areas[str(Path(record["file_name"]).resolve().relative_to(base))] = sorted(truth.masks.areas.tolist())
    half, third = 64 * 48, 64 * 32
    assert areas == {
        **{f"coco/train2017/{i}.jpg": [third, third] for i in range(1, 5)},  # without the crowd
        "bsds500/images/train/12.jpg": [half, half],  # the second coarsest of five
        "ccp/images/train/0.jpg": [960, 960, 1921],  # two garments and the person, without the garment of one pixel
    }
    assert MetadataCatalog.get("everyday_train").thing_classes == ["object"]


def test_pasted_objects(base, monkeypatch):
    """White persons on gray images: what is white in a composed image is what its annotations say."""
    monkeypatch.setattr(prepare, "_COMPOSED", 12)
    for i in range(1, 6):
        write_image(base / "coco" / "train2017" / f"{i}.jpg", np.full((*SIZE, 3), 100, np.uint8), "JPEG")
    for i in range(4):
        write_image(base / "ccp" / "images" / "train" / f"{i}.jpg", np.full((*SIZE, 3), 255, np.uint8), "JPEG")
    found = prepare_everyday(base / "everyday")
    register_files([base / "everyday" / "objects.yaml"])
    records = DatasetCatalog.get("everyday_composed_train")
    assert len(records) == 4 + 12
    pasted = 0
    for record in records:
        truth = read_ground_truth(record, SIZE, num_classes=1, ignore_label=255)
        if "composed" not in record["file_name"]:
            assert truth.masks.areas.tolist() == [64 * 32]  # without the stuff and the crowd
            continue
        bright = read_image(record["file_name"]).mean(-1) > 160
        objects = truth.masks.decode()
        assert (bright & ~objects.any(0)).mean() < 0.02
        pasted += sum((bright & mask).sum() > 0.9 * mask.sum() for mask in objects)
    assert pasted >= 3
    assert found["composed"] == f"16 images, {sum(len(r['annotations']) for r in records)} objects"


def test_composed_images_are_the_same_in_every_run(base):
    contents = []
    for _ in range(2):
        prepare_everyday(base / "everyday")
        files = sorted((base / "everyday" / "composed").iterdir())
        contents.append([file.read_bytes() for file in [*files, base / "everyday" / "composed.json"]])
    assert contents[0] == contents[1]
    assert len({*contents[0]}) == 4


def test_cutouts():
    pixels = np.arange(20 * 30 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 30, 3)
    objects = np.zeros((20, 30), np.int32)
    objects[2:6, 3:9], objects[4, 5], objects[10, 10] = 7, 0, 2
    [cutout] = cut_out(pixels, objects)
    assert np.array_equal(cutout.pixels, pixels[2:6, 3:9])
    assert np.array_equal(cutout.mask, objects[2:6, 3:9] == 7)


def test_hidden_object_is_no_object(base):
    """An object that a pasted one hides by more than 85 % is skipped, and the visible part of another one stays."""
    photograph = np.zeros(SIZE, np.int32)
    photograph[:, :3], photograph[0, 90:] = 1, 2
    person = np.ones(SIZE, np.int32)
    sources = [(base / "coco" / "train2017" / "1.jpg", lambda: [photograph])]
    persons = [(base / "ccp" / "images" / "train" / "0.jpg", lambda: [person])]
    composer = Composer(sources, persons, base / "composed")
    for index in range(20):
        _, objects = composer(index)
        numbers, areas = np.unique(objects[objects > 0], return_counts=True)
        for number, area in zip(numbers, areas, strict=True):
            assert number > 2 or area >= 0.15 * (photograph == number).sum()


def test_validation_images_keep_their_names(base):
    prepare_everyday(base / "everyday")
    register_files([base / "everyday" / "objects.yaml", base / "everyday" / "named.yaml"])
    for name in ("everyday_objects_val", "everyday_val"):
        [record] = DatasetCatalog.get(name)
        assert Path(record["file_name"]).resolve() == base / "coco" / "train2017" / "5.jpg"
        assert record["image_id"] == (1 if name == "everyday_objects_val" else 5)
    assert len(DatasetCatalog.get("everyday_named_train")) == 4
    assert Vocabulary.of_dataset("everyday_val") == Vocabulary.load("coco")


@pytest.mark.parametrize("missing", ["coco/annotations/panoptic_train2017.json", "bsds500/images/train/12.jpg"])
def test_missing_files_are_named(base, missing):
    (base / missing).unlink()
    with pytest.raises(DataError, match=str(Path(missing).parent)):
        prepare_everyday(base / "everyday")


def test_named_regions(base, monkeypatch):
    """Numbers are regions of the second coarsest of five segmentations, two halves; a missing image is skipped."""
    lines = (
        "# by eye",
        "bsds500/images/train/12.jpg: potted plant 1; sky 2",
        "coco/train2017/1.jpg: floor 0,5-10,10 0,0-5,2",
        "coco/train2017/7.jpg: sky 0,0-1,1",
    )
    (base / "regions.txt").write_text("\n".join(lines))
    monkeypatch.setattr(named_regions, "_FILE", base / "regions.txt")
    found = prepare_everyday(base / "everyday")
    assert (found["words_train"], found["words_val"]) == ("2 images, 4 regions", "0 images, 0 regions")
    register_files([base / "everyday" / "words.yaml"])
    assert MetadataCatalog.get("everyday_words_train").thing_classes == ["floor", "potted plant", "sky"]
    expected = np.zeros((4, *SIZE), bool)
    expected[0, :, :48], expected[1, :, 48:], expected[2, 32:], expected[3, :12, :48] = True, True, True, True
    classes, masks = [], []
    for record in DatasetCatalog.get("everyday_words_train"):
        truth = read_ground_truth(record, SIZE, num_classes=3, ignore_label=255)
        classes += truth.classes.tolist()
        masks += list(truth.masks.decode())
    assert classes == [1, 2, 0, 0]
    assert np.array_equal(masks, expected)


def test_shipped_regions():
    """Every image and word can be looked up, and no region is named twice."""
    shipped = named_regions.read_named_regions()
    words = {word for regions in shipped.values() for word, _ in regions}
    assert {"grass", "water", "wall", "potted plant"} <= words
    assert all(word_table().find(word).group >= 0 for word in words)
    for image, regions in shipped.items():
        numbers = [region for _, region in regions]
        assert len(numbers) == len(set(numbers)), image
        assert all(region.isdigit() == image.startswith("bsds500/images/") for region in numbers), image


def test_words_are_learned_from_regions(base, capsys):
    """Persons are white and sky is half white: after training, both are named rightly."""
    prepare_everyday(base / "everyday")
    output = base / "words.safetensors"
    arguments = SimpleNamespace(
        register=[str(base / "everyday" / "named.yaml")],
        dataset=[("everyday_named_train", 1)],
        min_size=64,
        output=output,
        test=["everyday_val"],
    )
    train_words.main(arguments)
    printed = capsys.readouterr().out
    assert "2 learned words" in printed
    assert "everyday_val, regions: 2, named rightly among 2 classes: 100.0 %" in printed
    learned, names = LearnedWords.load(output), word_table().names
    changed = {names[i] for i in (learned.delta != 0).any(1).nonzero()[:, 0].tolist()}
    assert changed == {"person", "sky"}


def test_regions_with_the_ignore_label_are_skipped(tmp_path):
    """The ignore label of a dataset is in its metadata."""
    labels = np.full(SIZE, 254, np.uint8)
    labels[:, :48] = 1
    write_label_map(tmp_path / "labels.png", labels)
    write_image(tmp_path / "image.png", np.zeros((*SIZE, 3), np.uint8))
    record = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    register(
        "ignoring_toy", lambda: [record], stuff_classes=["sky", "tree"], ignore_label=254, evaluator_type="sem_seg"
    )
    regions = train_words.read_regions("ignoring_toy", ImageNetNamer(None, min_size=64), 1)
    assert regions.classes.tolist() == [1]
    unregister("ignoring_toy")


def test_training_starts_at_the_classifier(base):
    """Without regions of a word, its logit is that of ImageNet's classifier."""
    prepare_everyday(base / "everyday")
    register_files([base / "everyday" / "named.yaml"])
    namer = ImageNetNamer(None, min_size=64)
    regions = train_words.read_regions("everyday_named_train", namer, 2)
    assert len(regions.classes) == 4
    learned = train_words.train([regions], namer)
    named = ImageNetNamer(learned, min_size=64)
    features = torch.rand(3, 1280)
    rows = namer.log_rows(features)
    dog = word_table().names.index("dog")
    with torch.no_grad():
        assert torch.allclose(
            named.group_logits(features, rows)[:, dog], learned.scale * rows[:, 151:269].amax(1), atol=1e-4
        )


def test_damaged_annotations(base):
    file = base / "coco" / "annotations" / "panoptic_train2017.json"
    file.write_text(json.dumps({"images": []})[:-1])
    with pytest.raises(DataError, match=r"panoptic_train2017\.json: cannot be read"):
        prepare_everyday(base / "everyday")


def test_damaged_label_map(base):
    Image.new("RGB", (96, 64)).save(base / "ccp" / "annotations" / "train" / "0.png")
    with pytest.raises(DataError, match=r"ccp/annotations/train/0\.png: a label map must have one channel"):
        prepare_everyday(base / "everyday")
