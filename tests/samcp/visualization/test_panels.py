"""Pictures of patches, predictions and ground truth."""

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
from samcp.visualization.panels import enlarge, paint_patches, paint_prediction, panel


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
    """A model that finds everything."""
    ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
    infos = [{**segment, "score": 0.9} for segment in record["segments_info"]]
    return {"panoptic_seg": (torch.tensor(ids, dtype=torch.int32), infos)}


@pytest.fixture(scope="module")
def metadata(record):
    return MetadataCatalog.get("synthetic_train")


def test_a_panel_has_four_pictures_of_one_size_large_enough_to_read(record, patches, prediction, metadata):
    pictures = panel(record, patches, prediction, metadata)
    assert list(pictures) == ["image", "patches", "result", "ground truth"]
    assert {picture.shape for picture in pictures.values()} == {(320, 448, 3)}
    assert {picture.dtype for picture in pictures.values()} == {np.dtype(np.uint8)}


def test_long_images_are_not_enlarged_beyond_what_a_jpeg_can_be():
    assert enlarge(np.zeros((3, 1000, 3), np.uint8)).shape == (12, 4096, 3)
    assert enlarge(np.zeros((3, 5000, 3), np.uint8)).shape == (3, 5000, 3)


def test_without_a_prediction_there_is_no_result(record, patches, metadata):
    assert list(panel(record, patches, None, metadata)) == ["image", "patches", "ground truth"]


def test_each_patch_has_its_colour_and_a_small_one_lies_on_a_large_one():
    masks = np.zeros((2, 40, 40), dtype=bool)
    masks[0, 15:25, 15:25] = True
    masks[1, 5:35, 5:35] = True
    painted = paint_patches(np.zeros((40, 40, 3), np.uint8), Patches.from_masks(masks))
    inner, outer, outside = painted[20, 20], painted[10, 10], painted[2, 2]
    assert (outside == 0).all()
    assert np.abs(inner.astype(int) - outer).sum() > 60
    assert (painted[5, 20] == 255).all()  # the outline


def test_an_image_without_patches_stays_as_it_is():
    image = np.full((10, 12, 3), 77, np.uint8)
    np.testing.assert_allclose(paint_patches(image, Patches.empty(10, 12)), image, atol=1)


def test_patches_of_another_size_are_refused(image):
    with pytest.raises(ValueError, match="10 x 12 do not fit"):
        paint_patches(image, Patches.empty(10, 12))


def test_the_same_prediction_gives_the_same_picture_whatever_the_random_state(image, prediction, metadata):
    np.random.seed(1)
    first = paint_prediction(image, prediction, metadata)
    np.random.seed(2)
    expected_next = np.random.rand()
    np.random.seed(2)
    second = paint_prediction(image, prediction, metadata)
    np.testing.assert_array_equal(first, second)
    assert np.random.rand() == expected_next


def test_semantic_labels_and_instances_are_painted_where_there_is_no_panoptic_map(image, metadata):
    height, width = image.shape[:2]
    labels = torch.full((height, width), -1)
    labels[:, : width // 2] = 5
    painted = paint_prediction(image, {"sem_seg": labels}, metadata)
    bare = paint_prediction(image, {"sem_seg": torch.full((height, width), -1)}, metadata)
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
    changed = (paint_prediction(image, {"instances": instances}, metadata) != bare).any(-1)
    assert changed[120:200, 160:280].mean() > 0.9


def test_an_instance_keeps_its_hole(metadata):
    """In a panoptic map and as annotations; Detectron2 would fill it."""
    ids = torch.zeros(120, 160, dtype=torch.int32)
    ids[10:110, 20:140] = 1
    ids[40:80, 50:110] = 0
    image = np.full((120, 160, 3), 90, np.uint8)
    infos = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
    picture = paint_prediction(image, {"panoptic_seg": (ids, infos)}, metadata)
    scale = picture.shape[0] / 120

    def changed(rows: slice, columns: slice) -> float:
        part = picture[int(rows.start * scale) : int(rows.stop * scale)]
        return (part[:, int(columns.start * scale) : int(columns.stop * scale)] != 90).any(-1).mean()

    assert changed(slice(12, 38), slice(22, 138)) == 1
    assert changed(slice(42, 55), slice(52, 108)) == 0  # above the name, which is in the middle
    assert changed(slice(0, 8), slice(0, 160)) == 0


def test_a_name_at_the_border_is_written_inside(metadata):
    def ink(x: int) -> int:
        """Pixels of the black behind the name of an instance at a column."""
        ids = torch.zeros(320, 400, dtype=torch.int32)
        ids[100:150, x : x + 50] = 1
        infos = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
        picture = paint_prediction(np.full((320, 400, 3), 255, np.uint8), {"panoptic_seg": (ids, infos)}, metadata)
        return int((picture.max(-1) < 60).sum())

    middle = ink(180)
    assert middle > 100
    assert min(ink(0), ink(350)) > 0.95 * middle


def test_a_class_has_one_colour_in_all_images():
    metadata = Metadata(name="words", thing_classes=["a", "b"], stuff_classes=["a", "b"])
    colors = []
    for side in (320, 400):
        labels = torch.zeros(side, side, dtype=torch.int64)
        labels[side // 2 :] = side // 400  # one image has a class that the other has not
        picture = paint_prediction(np.full((side, side, 3), 100, np.uint8), {"sem_seg": 1 - labels}, metadata)
        colors.append(picture[20, 20])
    assert np.abs(colors[0].astype(int) - colors[1]).max() <= 1
    assert (colors[0] != 100).any()


def test_a_prediction_of_nothing_is_refused(image, metadata):
    with pytest.raises(ValueError, match="nothing to draw"):
        paint_prediction(image, {"proposals": None}, metadata)
