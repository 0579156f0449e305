"""Random subsets of a dataset, with matching COCO json files."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from samcp.data.datasets.subset import register_subset
from samcp.errors import DataError
from tests.toy_datasets import panoptic_dataset


def test_seed_determines_the_subset(tmp_path: Path) -> None:
    with panoptic_dataset(tmp_path, "subset_toy", count=8) as name:
        draws = {}
        for seed in range(4):
            subset = register_subset(name, 3, tmp_path / "json", seed=seed)
            records = DatasetCatalog.get(subset)
            draws[seed] = [record["image_id"] for record in records]
            content = json.loads(Path(MetadataCatalog.get(subset).panoptic_json).read_text())
            assert [image["id"] for image in content["images"]] == draws[seed]
            assert {a["image_id"] for a in content["annotations"]} == set(draws[seed])
            DatasetCatalog.remove(subset)
            MetadataCatalog.remove(subset)
        assert all(len(set(draw)) == 3 for draw in draws.values())
        assert len({tuple(draw) for draw in draws.values()}) > 1
        with pytest.raises(DataError, match="8 images with ground truth; 9 is out of range"):
            register_subset(name, 9, tmp_path / "json")


def test_images_without_ground_truth_are_skipped() -> None:
    records = [{"file_name": f"{i}.png", "annotations": [{"iscrowd": i}] if i < 2 else []} for i in range(4)]
    DatasetCatalog.register("subset_empty_toy", lambda: records)
    with pytest.raises(DataError, match="1 images with ground truth; 2 is out of range"):
        register_subset("subset_empty_toy", 2, "unused")
    DatasetCatalog.remove("subset_empty_toy")
