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
from samcp.structures import RLEMasks
from samcp.visualization.drawing import draw_prediction, enlarge
from samcp.visualization.panels import panel


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


def test_panel_of_four_pictures_of_one_size(record, patches, prediction, metadata):
    pictures = panel(record, patches, prediction, metadata)
    assert list(pictures) == ["image", "patches", "result", "ground truth"]
    assert {picture.shape for picture in pictures.values()} == {(320, 448, 3)}
    assert {picture.dtype for picture in pictures.values()} == {np.dtype(np.uint8)}


def test_enlargement_of_long_images_is_limited():
    assert enlarge(np.zeros((3, 1000, 3), np.uint8)).shape == (12, 4096, 3)
    assert enlarge(np.zeros((3, 5000, 3), np.uint8)).shape == (3, 5000, 3)


def test_panel_without_a_prediction(record, patches, metadata):
    assert list(panel(record, patches, None, metadata)) == ["image", "patches", "ground truth"]


def test_colours_do_not_depend_on_the_random_state(image, prediction, metadata):
    np.random.seed(1)
    first = draw_prediction(image, prediction, metadata)
    np.random.seed(2)
    expected_next = np.random.rand()
    np.random.seed(2)
    second = draw_prediction(image, prediction, metadata)
    np.testing.assert_array_equal(first, second)
    assert np.random.rand() == expected_next


def test_semantic_and_instance_predictions(image, metadata):
    height, width = image.shape[:2]
    labels = torch.full((height, width), -1)
    labels[:, : width // 2] = 5
    painted = draw_prediction(image, {"sem_seg": labels}, metadata)
    bare = draw_prediction(image, {"sem_seg": torch.full((height, width), -1)}, metadata)
    changed = (painted != bare).any(-1)
    assert changed[:, : painted.shape[1] // 2 - 4].mean() > 0.9
    assert changed[:, painted.shape[1] // 2 + 60 :].mean() < 0.1

    mask = np.zeros((1, height, width), bool)
    mask[0, 20:60, 30:80] = True
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.tensor([[30.0, 20.0, 80.0, 60.0]]))
    instances.scores = torch.tensor([0.8])
    instances.pred_classes = torch.tensor([1])
    instances.pred_masks = RLEMasks(Patches.from_masks(mask).coco_rles, height, width)
    changed = (draw_prediction(image, {"instances": instances}, metadata) != bare).any(-1)
    assert changed[120:200, 160:280].mean() > 0.9


def test_holes_of_instances_are_not_filled(metadata):
    """Detectron2 would fill the hole."""
    ids = torch.zeros(120, 160, dtype=torch.int32)
    ids[10:110, 20:140] = 1
    ids[40:80, 50:110] = 0
    image = np.full((120, 160, 3), 90, np.uint8)
    infos = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
    picture = draw_prediction(image, {"panoptic_seg": (ids, infos)}, metadata)
    scale = picture.shape[0] / 120

    def changed(rows: slice, columns: slice) -> float:
        part = picture[int(rows.start * scale) : int(rows.stop * scale)]
        return (part[:, int(columns.start * scale) : int(columns.stop * scale)] != 90).any(-1).mean()

    assert changed(slice(12, 38), slice(22, 138)) == 1
    assert changed(slice(42, 55), slice(52, 108)) == 0  # above the label, which is in the middle
    assert changed(slice(0, 8), slice(0, 160)) == 0


def test_labels_at_the_border_stay_inside_the_image(metadata):
    def label_pixels(x: int) -> int:
        """Count the black background pixels of the label of an instance at column x."""
        ids = torch.zeros(320, 400, dtype=torch.int32)
        ids[100:150, x : x + 50] = 1
        infos = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
        picture = draw_prediction(np.full((320, 400, 3), 255, np.uint8), {"panoptic_seg": (ids, infos)}, metadata)
        return int((picture.max(-1) < 60).sum())

    middle = label_pixels(180)
    assert middle > 100
    assert min(label_pixels(0), label_pixels(350)) > 0.95 * middle


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
