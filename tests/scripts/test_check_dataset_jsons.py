"""Errors in the json files of a dataset: all are reported, not only the first."""

import pytest

from tests.scripts.dataset_faults import add_image, edit, set_value
from tests.scripts.test_check_dataset import beach, check_dataset, run

__all__ = ["beach"]  # a fixture


def drop(which, *keys):
    """Return a function that removes keys from the first entry of a list or, without keys, the list itself."""

    def change(content):
        for key in keys:
            del content[which][0][key]
        if not keys:
            del content[which]

    return change


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop("annotations"), "instances.json: has no annotations, which is a list of objects"),
        (drop("images"), "instances.json: has no images, which is a list of objects"),
        (set_value("images", "id", 1), "instances.json: 2 images have the id 1"),
        (drop("images", "id", "width"), "instances.json: image one.jpg has no id and no width"),
        (drop("annotations", "id"), "annotation number 1 has no id, which COCO's evaluation needs"),
        (drop("annotations", "image_id", "category_id"), "annotation 1 has no image_id"),
        (
            set_value("annotations", "category_id", 8),
            "annotation 1 has the category_id 8, which is not in its categories",
        ),
        (set_value("annotations", "image_id", 8), "annotation 1 has the image_id 8, which is not in its images"),
        (
            set_value("annotations", "segmentation", [10, 8, 30, 8, 30, 20]),
            "annotation 1 has an invalid segmentation: a polygon must be a list",
        ),
        (
            set_value("annotations", "segmentation", {"size": [40, 60]}),
            "annotation 1 has an invalid segmentation: segmentation must be a list of polygons or a dict with",
        ),
        (
            set_value("annotations", "segmentation", {"size": [40, 60], "counts": "0"}),
            "does not match the image",
        ),
        (set_value("annotations", "segmentation", [[0, 0, 1e9, 0, 1e9, 9]]), "polygon coordinate 1000000000.0 must be"),
        (set_value("annotations", "bbox", []), "annotation 1 has no bbox"),
        (
            set_value("annotations", "bbox", ["10", 8, 20, 12]),
            "1 has the bbox ['10', 8, 20, 12], which is not",
        ),
        (
            set_value("annotations", "bbox", [30, 8, 20, 12]),
            "(x, y, width, height) is not that of its mask, [10",
        ),
        (set_value("annotations", "area", 2400), "one.jpg: has area 2400, but its mask has 240 pixels"),
        (set_value("annotations", "iscrowd", "no"), "annotation 1 has iscrowd 'no', which is neither 0 nor 1"),
        (set_value("annotations", "ignore", 1), "annotation 1 has ignore 1, which Detectron2 does not support"),
        (set_value("images", "height", "40"), "image one.jpg has the invalid size '40' x 60 (height x width)"),
        (set_value("annotations", "id", [1]), "annotation number 1 has no id"),
    ],
)
def test_errors_of_an_instance_json(beach, tmp_path, monkeypatch, capsys, fault, message):
    edit(beach / "instances.json", fault)
    edit(beach / "instances.json", lambda content: content.get("annotations", [{}])[-1].pop("area", None))
    assert run(check_dataset, monkeypatch, "--register", beach / "kites.yaml", "--output", tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert message in out
    assert "annotation 2 has no area" in out or "has no annotations" in out, "later errors must be reported"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop("annotations"), "panoptic.json: has no annotations, which is a list of objects"),
        (drop("annotations", "image_id"), "panoptic.json: annotation 0.png has no image_id"),
        (drop("annotations", "file_name"), "panoptic.json: annotation number 1 has no file_name"),
        (drop("annotations", "segments_info"), "panoptic.json: annotation 0.png has no segments_info"),
        (
            set_value("annotations", "segments_info", [{"id": 1}]),
            "0.png has a segment, 1, that has no category_id",
        ),
        (
            set_value("annotations", "segments_info", [{"category_id": 8}]),
            "0.png has a segment, number 1, that has the category_id 8, which is not in its categories",
        ),
    ],
)
def test_errors_of_a_panoptic_json(beach, tmp_path, monkeypatch, capsys, fault, message):
    edit(beach / "panoptic.json", fault)
    edit(beach / "panoptic.json", add_image)
    where = ("--register", beach / "beach.yaml", "own_panoptic", "--output", tmp_path / "out")
    assert run(check_dataset, monkeypatch, *where) == 1
    out = capsys.readouterr().out
    assert message in out
    assert "image three.jpg has no annotation" in out, "later errors must be reported"


def drop_everywhere(*keys):
    """Return a function that removes keys from every annotation, segment and category."""

    def change(content):
        for annotation in content["annotations"]:
            for entry in (annotation, *annotation.get("segments_info", [])):
                for key in keys:
                    entry.pop(key, None)
        for category in content["categories"]:
            for key in keys:
                category.pop(key, None)

    return change


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("area", "annotation 1 has no area, which COCO's evaluation needs"),
        ("iscrowd", "annotation 1 has no iscrowd"),
        ("isthing", "has no isthing"),
        ("name", "categories need distinct ids"),
    ],
)
def test_missing_keys_that_evaluation_needs(beach, tmp_path, monkeypatch, capsys, key, message):
    name = "panoptic.json" if key == "isthing" else "instances.json"
    edit(beach / name, drop_everywhere(key))
    yamls = ("--register", beach / "beach.yaml", "--register", beach / "kites.yaml")
    code = run(check_dataset, monkeypatch, *yamls, "--output", tmp_path / "out")
    assert code not in (0, None)
    assert message in capsys.readouterr().out + str(code)
