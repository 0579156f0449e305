"""COCO: registration and evaluation of two images in the layout of the release."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from panopticapi.utils import id2rgb
from PIL import Image

from samcp.data.datasets.coco.register import register_coco
from samcp.vocabulary import Vocabulary
from tests.perfect_model import evaluate_truth

SIZE = (60, 80)
PANOPTIC_VAL = "coco_2017_val_panoptic"
PERSON, DOG, SKY, GRASS = 1, 18, 187, 193  # the release's category ids
# Segment id, category, iscrowd and box (x0, y0, x1, y1); later boxes cover earlier ones.
SEGMENTS = [
    (6187104, SKY, 0, (0, 2, 80, 30)),  # void above it
    (2774815, GRASS, 0, (0, 30, 80, 60)),
    (5069153, PERSON, 0, (5, 20, 15, 30)),
    (8555433, PERSON, 0, (25, 20, 35, 30)),
    (3226956, DOG, 0, (45, 40, 65, 50)),
    (70000, PERSON, 1, (65, 20, 75, 30)),
]
MISSED = 8555433


def pixels(box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def segmentation(box: tuple[int, int, int, int], crowd: int) -> list | dict:
    """Return a polygon or, for a crowd, an uncompressed RLE, as in the release."""
    x0, y0, x1, y1 = box
    if not crowd:
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    changes = np.flatnonzero(np.diff(pixels(box).ravel("F"))) + 1
    return {"size": list(SIZE), "counts": np.diff([0, *changes, SIZE[0] * SIZE[1]]).tolist()}


def write_release(folder: Path) -> None:
    """Write two images, each with two people, a crowd of people, a dog, sky and grass."""
    for part in ("val2017", "panoptic_val2017", "annotations"):
        (folder / part).mkdir(parents=True)
    images, panoptic, instances = [], [], []
    for image_id in (139, 285):
        ids = np.zeros(SIZE, np.int32)
        for i, _, _, box in SEGMENTS:
            ids[pixels(box)] = i
        name = f"{image_id:012d}"
        Image.new("RGB", SIZE[::-1]).save(folder / "val2017" / f"{name}.jpg")
        Image.fromarray(id2rgb(ids)).save(folder / "panoptic_val2017" / f"{name}.png")
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
        segments = [
            {
                "id": i,
                "category_id": category,
                "iscrowd": crowd,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int((ids == i).sum()),
            }
            for i, category, crowd, (x0, y0, x1, y1) in SEGMENTS
        ]
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
        for segment, (_, category, crowd, box) in zip(segments, SEGMENTS, strict=True):
            if category in (PERSON, DOG):
                own = {"id": len(instances) + 1, "image_id": image_id, "segmentation": segmentation(box, crowd)}
                instances.append({**segment, **own})
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    for kind, annotations, categories in (("panoptic", panoptic, COCO_CATEGORIES), ("instances", instances, things)):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(content))


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """Register the dataset with Detectron2, in otherwise empty catalogs."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    write_release(tmp_path / "coco")
    register_all_coco(str(tmp_path))
    register_coco()
    return tmp_path / "coco"


def test_ground_truth_scores_100(coco, tmp_path):
    results = evaluate_truth(PANOPTIC_VAL, tmp_path)
    metrics = {"panoptic_seg": ["PQ", "PQ_th", "PQ_st"], "segm": ["AP"], "bbox": ["AP"], "sem_seg": ["mIoU"]}
    for task, names in metrics.items():
        for name in names:
            assert results[task][name] == pytest.approx(100), (task, name)


def test_missed_person(coco, tmp_path):
    """One of two people per image is predicted; the metrics are computed by hand."""

    def drop_person(outputs):
        ids, segments = outputs["panoptic_seg"]
        outputs["sem_seg"][ids == MISSED] = -1
        ids[ids == MISSED] = 0
        boxes = outputs["instances"].pred_boxes.tensor
        return {
            **outputs,
            "instances": outputs["instances"][boxes[:, 0] != 25],
            "panoptic_seg": (ids, [s for s in segments if s["id"] != MISSED]),
        }

    results = evaluate_truth(PANOPTIC_VAL, tmp_path, drop_person)
    # One person of two: RQ = 1 / (1 + 0.5). The crowd is not counted; the dog is perfect.
    assert results["panoptic_seg"]["PQ_th"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert results["panoptic_seg"]["PQ_st"] == pytest.approx(100)
    # COCO samples precision at recalls 0, 0.01, ..., 1; with half of the people it is 1 up to recall 0.5.
    assert results["segm"]["AP-person"] == pytest.approx(100 * 51 / 101)
    assert results["segm"]["AP"] == pytest.approx(100 * (1 + 51 / 101) / 2)
    # Two of three regions of people, one of them the crowd, are correct.
    assert results["sem_seg"]["IoU-person"] == pytest.approx(200 / 3)
    assert results["sem_seg"]["mIoU"] == pytest.approx((3 * 100 + 200 / 3) / 4)


def test_things_have_the_same_words_with_and_without_stuff(coco):
    panoptic, things = Vocabulary.of_dataset(PANOPTIC_VAL), Vocabulary.of_dataset("coco_2017_val")
    assert things.words == panoptic.words[:80]
    assert "man" in things.words[0]
