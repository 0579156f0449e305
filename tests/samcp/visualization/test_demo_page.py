"""Contents of the demo page."""

import numpy as np
import pytest
from PIL import Image

from proposal_cache import CacheWriter, PatchCache, Patches
from samcp.predictor import Predictor
from samcp.visualization.demo_page import PHOTOGRAPHS, compare, photograph_rows, write_photographs

MODEL = {"panoptic_seg": {"PQ": 30.0, "PQ_th": 20.0, "PQ_st": 0.0}, "sem_seg": {"mIoU": 55.55}}
ORACLE = {"panoptic_seg": {"PQ": 60.0, "PQ_th": 80.0, "PQ_st": 0.0}, "sem_seg": {"mIoU": 99.0}, "segm": {"AP": 5.0}}


def test_comparison_of_model_and_oracle():
    assert compare(MODEL, ORACLE) == [
        ["PQ", "30.0", "60.0", "50 %"],
        ["PQ of things", "20.0", "80.0", "25 %"],
        ["PQ of stuff", "0.0", "0.0", "–"],
        ["mIoU", "55.5", "99.0", "56 %"],
    ]


def test_undefined_metric():
    nan = {"panoptic_seg": {"PQ": float("nan")}}
    assert compare(nan, ORACLE) == [["PQ", "–", "60.0", "–"]]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder)
    return folder


def test_photographs_are_written_once(photographs):
    assert sorted(path.stem for path in photographs.iterdir()) == sorted(PHOTOGRAPHS)
    first = photographs / "astronaut.jpg"
    before = first.stat().st_mtime_ns
    write_photographs(photographs)
    assert first.stat().st_mtime_ns == before


def test_photograph_rows_contain_coverage(photographs, tmp_path):
    with CacheWriter(tmp_path / "patches", {"name": "halves"}, "photographs") as writer:
        for name in PHOTOGRAPHS:
            width, height = Image.open(photographs / f"{name}.jpg").size
            left = np.zeros((1, height, width), bool)
            left[0, :, : width // 2] = True
            writer.add(name, Patches.from_masks(left))
    predictor = Predictor.from_pretrained("samcp-everyday-lite")
    rows = photograph_rows(photographs, PatchCache(tmp_path / "patches"), predictor)
    assert [row.title.partition(":")[0] for row in rows] == list(PHOTOGRAPHS)
    assert rows[2].title == "coffee: cup, spoon, plate, table"
    assert all(row.note == "1 patch covers 50% of the picture" for row in rows)
    assert all(list(row.pictures) == ["image", "patches", "segmentation"] for row in rows)
