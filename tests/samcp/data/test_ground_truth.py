"""Ground truth from panoptic PNGs, label PNGs and annotations."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from samcp.data.ground_truth import read_ground_truth
from samcp.errors import DataError

SIZE = (20, 30)
OPTIONS = {"num_classes": 11, "ignore_label": 255}


def squares():
    ids = np.zeros(SIZE, dtype=np.int32)
    ids[2:8, 3:9] = 7
    ids[10:18, 12:25] = 70000  # uses all three channels of a panoptic PNG
    ids[0:2, :] = 3
    return ids


def write_panoptic(path, ids):
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)


def test_panoptic_png(tmp_path):
    write_panoptic(tmp_path / "a.png", squares())
    record = {
        "file_name": "a.jpg",
        "pan_seg_file_name": str(tmp_path / "a.png"),
        "segments_info": [
            {"id": 7, "category_id": 1, "isthing": True, "iscrowd": 0},
            {"id": 70000, "category_id": 5, "isthing": False, "iscrowd": 0},
        ],  # id 3 is not listed: void
    }
    truth = read_ground_truth(record, SIZE, **OPTIONS)
    assert dict(zip(truth.classes.tolist(), truth.masks.areas.tolist(), strict=True)) == {1: 36, 5: 104}
    masks, classes = truth.things()
    assert classes.tolist() == [1]
    np.testing.assert_array_equal(masks.decode()[0], squares() == 7)


def test_label_png(tmp_path):
    labels = np.full(SIZE, 255, dtype=np.uint8)
    labels[:5], labels[10:, :4] = 2, 10
    Image.fromarray(labels).save(tmp_path / "a.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    truth = read_ground_truth(record, SIZE, **OPTIONS)
    assert truth.classes.tolist() == [2, 10]
    np.testing.assert_array_equal(truth.masks.decode(), [labels == 2, labels == 10])
    assert len(truth.things()[0]) == 0


def test_polygons_and_rles():
    mask = squares() == 7
    compressed = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.ravel("F"), [2]]))))
    text = {"size": list(SIZE), "counts": compressed["counts"].decode()}
    forms = [[[3, 2, 9, 2, 9, 8, 3, 8]], text, {"size": list(SIZE), "counts": runs.tolist()}]
    record = {
        "file_name": "a.jpg",
        "annotations": [{"segmentation": form, "category_id": i, "iscrowd": i == 2} for i, form in enumerate(forms)],
    }
    truth = read_ground_truth(record, SIZE, **OPTIONS)
    for decoded in truth.masks.decode():
        np.testing.assert_array_equal(decoded, mask)
    assert truth.things()[1].tolist() == [0, 1]
    assert truth.is_crowd.tolist() == [False, False, True]


@pytest.mark.parametrize(
    "segmentation",
    [{"size": list(SIZE), "counts": "0"}, [[0, 0, 1e9, 0, 1e9, 9]], {"size": [3, 3], "counts": "9"}, None],
)
def test_invalid_masks_are_rejected_before_pycocotools_reads_them(segmentation):
    record = {"file_name": "a.jpg", "annotations": [{"segmentation": segmentation, "category_id": 0}]}
    with pytest.raises(DataError, match=r"a.jpg: annotation number 1 of this image is invalid"):
        read_ground_truth(record, SIZE, **OPTIONS)


def test_unknown_labels(tmp_path):
    Image.fromarray(np.full(SIZE, 12, dtype=np.uint8)).save(tmp_path / "a.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    with pytest.raises(DataError, match=r"a.png: has the labels \[12\].*classes 0..10"):
        read_ground_truth(record, SIZE, **OPTIONS)


def test_label_map_with_three_channels(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    with pytest.raises(DataError, match=r"a.png: a label map must have one channel"):
        read_ground_truth(record, SIZE, **OPTIONS)


@pytest.mark.parametrize("record", [{}, {"sem_seg_file_name": "a.png", "annotations": []}])
def test_no_form_or_two_forms_of_ground_truth(record):
    with pytest.raises(DataError, match=r"a.jpg: the ground truth must be one of"):
        read_ground_truth({"file_name": "a.jpg", **record}, SIZE, **OPTIONS)


def test_missing_and_damaged_file(tmp_path):
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    with pytest.raises(DataError, match=r"a.png: the ground truth is missing"):
        read_ground_truth(record, SIZE, **OPTIONS)
    (tmp_path / "a.png").write_bytes(b"no png")
    with pytest.raises(DataError, match=r"a.png: the ground truth cannot be read"):
        read_ground_truth(record, SIZE, **OPTIONS)


def test_flipped_bits_of_a_label_map_are_reported(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray((np.arange(600).reshape(SIZE) % 11).astype(np.uint8)).save(path)
    content = path.read_bytes()
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(path)}
    for position in range(50, len(content) - 12, 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(DataError, match=r"a.png: the ground truth cannot be read"):
            read_ground_truth(record, SIZE, **OPTIONS)
