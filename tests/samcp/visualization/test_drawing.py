"""Drawing of predictions and ground truth."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances
from panopticapi.utils import rgb2id
from PIL import Image

from proposal_cache import Patches
from samcp.data.datasets.synthetic.prepare import make_synthetic_dataset
from samcp.data.datasets.synthetic.register import register_synthetic
from samcp.regions import predicted_regions, true_regions
from samcp.structures import RLEMasks
from samcp.visualization.drawing import draw_comparison, draw_prediction, draw_regions, enlarge
from samcp.visualization.labels import Label, place_labels
from samcp.visualization.palette import region_colors
from samcp.visualization.panels import panel, side_by_side


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    make_synthetic_dataset(folder, 1, 1, (80, 112))
    register_synthetic(folder)
    return DatasetCatalog.get("synthetic_train")[0]


@pytest.fixture(scope="module")
def image(record):
    return np.asarray(Image.open(record["file_name"]))


@pytest.fixture(scope="module")
def patches(record):
    ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
    return Patches.from_masks(np.stack([ids == segment["id"] for segment in record["segments_info"]]))


@pytest.fixture(scope="module")
def prediction(record):
    """Return the ground truth as a prediction."""
    ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
    infos = [{**segment, "score": 0.9} for segment in record["segments_info"]]
    return {"panoptic_seg": (torch.tensor(ids, dtype=torch.int32), infos)}


@pytest.fixture(scope="module")
def metadata(record):
    return MetadataCatalog.get("synthetic_train")


def test_panel_of_four_pictures_of_one_width(record, patches, prediction, metadata):
    pictures = panel(record, patches, predicted_regions(prediction), metadata)
    assert list(pictures) == ["image", "patches", "prediction", "ground truth"]
    assert pictures["image"].shape == pictures["patches"].shape == (320, 448, 3)
    assert {picture.shape[1] for picture in pictures.values()} == {448}
    assert pictures["prediction"].shape[0] > 320, "the legend is below the picture"
    assert {picture.dtype for picture in pictures.values()} == {np.dtype(np.uint8)}


def test_pictures_side_by_side():
    joined = side_by_side([np.zeros((10, 20, 3), np.uint8), np.zeros((14, 30, 3), np.uint8)])
    assert joined.shape == (14, 20 + 8 + 30, 3)
    assert (joined[10:, :20] == 255).all()


def test_prediction_equal_to_the_ground_truth_has_the_same_colours(record, image, prediction, metadata):
    predicted, truth = draw_comparison(
        image, predicted_regions(prediction), true_regions(record, image.shape[:2], metadata), metadata
    )
    height = enlarge(image).shape[0]
    differs = (predicted[:height] != truth[:height]).any(-1)
    assert differs.mean() < 0.2, "only labels differ, as those of predictions have scores"


def test_enlargement_of_long_images_is_limited():
    assert enlarge(np.zeros((3, 1000, 3), np.uint8)).shape == (12, 4096, 3)
    assert enlarge(np.zeros((3, 5000, 3), np.uint8)).shape == (3, 5000, 3)


def test_panel_without_a_prediction(record, patches, metadata):
    assert list(panel(record, patches, None, metadata)) == ["image", "patches", "ground truth"]


def instance(mask: np.ndarray) -> dict:
    """Return a prediction of one instance, class 1."""
    instances = Instances(mask.shape)
    masks = Patches.from_masks(mask[None])
    instances.pred_boxes = Boxes(torch.from_numpy(masks.boxes.copy()))
    instances.scores = torch.tensor([0.8])
    instances.pred_classes = torch.tensor([1])
    instances.pred_masks = RLEMasks(masks.coco_rles, *mask.shape)
    return {"instances": instances}


def test_unlabelled_pixels_are_hatched_and_in_the_legend(metadata):
    image = np.full((320, 400, 3), 90, np.uint8)
    labels = torch.full((320, 400), -1)
    labels[:, :200] = 5
    picture = draw_prediction(image, {"sem_seg": labels}, metadata)
    assert 0.2 < (picture[:320, 210:] != 90).any(-1).mean() < 0.6, "lines"
    assert (picture[:320, :190] != 90).any(-1).all(), "the colour of the class"
    labels[:] = 5
    assert len(draw_prediction(image, {"sem_seg": labels}, metadata)) <= len(picture)
    legend, whole = picture[320:], draw_prediction(image, {"sem_seg": labels}, metadata)[320:]
    assert (legend < 128).all(-1).any(0).sum() > (whole < 128).all(-1).any(0).sum() + 40, "one more entry"


def test_background_of_instances_is_not_unlabelled(metadata):
    image, mask = np.full((320, 400, 3), 90, np.uint8), np.zeros((320, 400), bool)
    mask[100:200, 100:200] = True
    picture = draw_prediction(image, instance(mask), metadata)
    assert (picture[:90] == 90).all()
    assert (picture[105:195, 105:195] != 90).any(-1).all()


def test_holes_of_instances_are_not_filled(metadata):
    image, mask = np.full((320, 400, 3), 90, np.uint8), np.zeros((320, 400), bool)
    mask[20:300, 20:380] = True
    mask[80:240, 80:320] = False
    picture = draw_prediction(image, instance(mask), metadata)
    assert (picture[90:230, 90:310] == 90).all()


def test_text_of_a_large_picture_is_large(metadata):
    """The legend takes the same share of the height of a picture and of one ten times as large."""
    legends = []
    for size in (400, 4000):
        prediction = {"sem_seg": torch.zeros(size, size, dtype=torch.long)}
        picture = draw_prediction(np.zeros((size, size, 3), np.uint8), prediction, metadata)
        legends.append(picture.shape[0] / size - 1)
    assert legends[0] == pytest.approx(legends[1], rel=0.15)


def test_labels_do_not_overlap():
    """Sixty labels at one place: those that have no room nearby are skipped."""
    labels = [Label(f"person {i}", (200.0, 100.0), np.ones(3)) for i in range(60)]
    boxes = [box for _, box in place_labels(labels, (240, 400), 12)]
    assert 5 < len(boxes) < 60
    canvas = np.zeros((240, 400), int)
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        canvas[top:bottom, left:right] += 1
    assert canvas.max() == 1
    assert canvas.sum() == sum((right - left) * (bottom - top) for left, top, right, bottom in boxes), "inside"


def test_label_is_at_its_place_if_it_is_free():
    [(_, (left, top, right, bottom))] = place_labels([Label("cat", (200.0, 100.0), np.ones(3))], (240, 400), 12)
    assert (left + right) / 2 == pytest.approx(200, abs=1)
    assert (top + bottom) / 2 == pytest.approx(100, abs=1)


def test_legend_counts_the_instances(record, image, metadata, monkeypatch):
    texts = []
    monkeypatch.setattr(
        "samcp.visualization.drawing.draw_legend",
        lambda entries, width, size: texts.extend(e.text for e in entries) or np.zeros((0, width, 3), np.uint8),
    )
    truth = true_regions(record, image.shape[:2], metadata)
    draw_regions(image, truth, region_colors(truth), metadata)
    counts = [segment["category_id"] for segment in record["segments_info"]]
    names = metadata.stuff_classes
    expected = [
        f"{counts.count(c)} × {names[c]}" if truth.is_thing[truth.classes == c].all() else names[c]
        for c in sorted(set(counts))
    ]
    assert texts == expected


def test_stuff_class_has_the_same_colour_in_all_images():
    metadata = Metadata(name="words", thing_classes=["a", "b"], stuff_classes=["a", "b"])
    colors = []
    for side in (320, 400):
        labels = torch.zeros(side, side, dtype=torch.int64)
        labels[side // 2 :] = side // 400  # only one of the images has both classes
        picture = draw_prediction(np.full((side, side, 3), 100, np.uint8), {"sem_seg": 1 - labels}, metadata)
        colors.append(picture[20, 20])
    assert np.abs(colors[0].astype(int) - colors[1]).max() <= 1
    assert (colors[0] != 100).any()


def test_prediction_without_segmentation_is_rejected(image, metadata):
    with pytest.raises(ValueError, match="it needs one of panoptic_seg"):
        draw_prediction(image, {"proposals": None}, metadata)
