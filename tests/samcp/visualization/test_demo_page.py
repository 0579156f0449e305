"""Contents of the demo page."""

import numpy as np
import pytest
from PIL import Image

from proposal_cache import CacheWriter, PatchCache, Patches
from samcp.predictor import Predictor
from samcp.visualization.demo_page import PHOTOGRAPHS, photograph_rows, write_photographs


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
