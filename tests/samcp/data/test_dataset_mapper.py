"""Dataset mapper and data loaders."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from proposal_cache import CacheError, CacheWriter, Patches
from samcp import add_samcp_config
from samcp.data import build_test_loader, build_train_loader, check_test_data
from samcp.data.build import load_records
from samcp.data.dataset_mapper import SAMCPDatasetMapper
from samcp.data.datasets.catalog import register, unregister
from samcp.errors import DataError
from tests.toy_datasets import SIZE, panoptic_dataset, write_patches


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Dataset of four images with its cache; tests must not change it."""
    root = tmp_path_factory.mktemp("toy")
    with panoptic_dataset(root, "toy_mapper"):
        yield root


def config(root, **overrides):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("toy_mapper",)
    cfg.DATASETS.PATCHES_TRAIN = cfg.DATASETS.PATCHES_TEST = (str(root / "patches"),)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (90, 120), 120
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.merge_from_list([part for item in overrides.items() for part in (item[0].replace("__", "."), item[1])])
    return cfg


def mapped(cfg, index, is_train):
    records, cache = load_records("toy_mapper", cfg.DATASETS.PATCHES_TEST[0])
    mapper = SAMCPDatasetMapper(
        cfg, is_train=is_train, dataset_name="toy_mapper", caches={cfg.DATASETS.PATCHES_TEST[0]: cache}
    )
    return mapper(records[index])


def test_inputs_at_test(toy):
    sample = mapped(config(toy), 0, is_train=False)
    assert sample["image"].shape == (3, 120, 160)
    assert sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"]) == SIZE
    assert sample["key"] == "001"
    assert sample["image_id"] == 1
    patches, rles = sample["patches"], sample["patch_rles"]
    assert patches.image_size == (120, 160)
    assert len(patches) == len(rles) > 10
    np.testing.assert_allclose(patches.patch_boxes.tensor.numpy(), 2 * rles.boxes)
    np.testing.assert_array_equal(patches.roi_masks.numpy(), rles.roi_masks(size=7))
    assert "instances" not in sample


def test_oracle_inputs_have_targets(toy):
    sample = mapped(config(toy, TEST__ORACLE=True), 0, is_train=False)
    instances, regions = sample["instances"], sample["sem_segments"]
    assert (instances.gt_classes < 2).all()
    assert regions.gt_classes.tolist() == sorted(set(regions.gt_classes.tolist()))
    assert {2, 3} <= set(regions.gt_classes.tolist())
    # The cache contains every segment and its halves, so each entity has at least three patches.
    for entities in (instances, regions):
        assert entities.gt_affinity.shape == (len(entities), len(sample["patch_rles"]))
        assert (entities.gt_affinity.sum(dim=1) >= 3).all()
    # The crowd of discs in image 1 and its halves belong to no entity.
    assert sample["patches"].in_crowd.sum() == 3
    assert instances.gt_ignore[:, sample["patches"].in_crowd].all()


def test_training_inputs(toy):
    np.random.seed(0)
    cfg = config(toy, INPUT__CROP__ENABLED=True, INPUT__CROP__TYPE="absolute_range", INPUT__CROP__SIZE=[100, 300])
    samples = [mapped(cfg, i % 4, is_train=True) for i in range(24)]
    assert len({tuple(s["image"].shape) for s in samples}) > 5
    for sample in samples:
        height, width = sample["image"].shape[1:]
        patches, instances = sample["patches"], sample["instances"]
        assert "patch_rles" not in sample
        assert patches.image_size == (height, width)
        assert len(patches) > 0
        for boxes in (patches.patch_boxes, instances.gt_boxes, sample["sem_segments"].gt_boxes):
            assert (boxes.tensor[:, :2] >= 0).all()
            assert (boxes.tensor[:, 2:] <= torch.tensor([width, height])).all()
            assert boxes.nonempty().all()
        assert instances.gt_affinity.shape == instances.gt_ignore.shape == (len(instances), len(patches))
        assert not (instances.gt_affinity & instances.gt_ignore).any()
        assert len(sample["sem_segments"]) > 0


def test_crop_after_the_resize_is_always_applied(toy):
    crop = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__TYPE": "absolute", "INPUT__CROP__SIZE": [50, 70]}
    cfg = config(toy, INPUT__CROP__AFTER_RESIZE=True, INPUT__MIN_SIZE_TRAIN=(90,), **crop)
    shapes = {tuple(mapped(cfg, index % 4, is_train=True)["image"].shape) for index in range(12)}
    assert shapes == {(3, 50, 70)}


def test_boxes_follow_the_augmentation(toy):
    """In the augmented image, the centre of a disc's box has the colour of discs."""
    np.random.seed(1)
    cfg = config(toy, INPUT__FORMAT="RGB", INPUT__CROP__ENABLED=True, INPUT__CROP__SIZE=[0.5, 0.5])
    disc = torch.tensor([220.0, 40, 40])
    seen = 0
    for i in range(12):
        sample = mapped(cfg, i % 4, is_train=True)
        instances = sample["instances"]
        for box in instances.gt_boxes.tensor[instances.gt_classes == 0]:
            x0, y0, x1, y1 = box.tolist()
            if min(x1 - x0, y1 - y0) < 20 or x0 < 1 or y0 < 1:
                continue
            x, y = int((x0 + x1) / 2), int((y0 + y1) / 2)
            middle = sample["image"][:, y - 2 : y + 3, x - 2 : x + 3].float().mean(dim=(1, 2))
            assert (middle - disc).abs().max() < 40
            seen += 1
    assert seen > 5


def test_loaders(toy):
    cfg = config(toy)
    batch = next(iter(build_train_loader(cfg)))
    assert len(batch) == 2
    assert {"image", "patches", "instances", "sem_segments"} <= set(batch[0])
    assert [sample[0]["key"] for sample in build_test_loader(cfg, "toy_mapper")] == ["001", "002", "003", "004"]


def test_worker_processes(toy):
    plain = [sample[0] for sample in build_test_loader(config(toy), "toy_mapper")]
    loader = build_test_loader(config(toy, DATALOADER__NUM_WORKERS=2), "toy_mapper")
    for sample, [other] in zip(plain, loader, strict=True):
        assert torch.equal(sample["image"], other["image"])
        assert torch.equal(sample["patches"].roi_masks, other["patches"].roi_masks)
        assert sample["patch_rles"].rles == other["patch_rles"].rles


def test_mapper_can_be_pickled(toy):
    dataset = build_test_loader(config(toy), "toy_mapper").dataset
    received = pickle.loads(pickle.dumps(dataset))
    assert received[2]["patch_rles"].rles == dataset[2]["patch_rles"].rles


def test_image_without_patches(tmp_path):
    with panoptic_dataset(tmp_path, "toy_mapper", patches=False):
        keys = [f"{i:03d}" for i in range(1, 5)]
        write_patches(tmp_path / "patches", "toy_mapper", {key: Patches.empty(*SIZE) for key in keys})
        for is_train in (True, False):
            sample = mapped(config(tmp_path, TEST__ORACLE=True), 0, is_train)
            assert len(sample["patches"]) == 0
            assert sample["patches"].roi_masks.shape == (0, 7, 7)
            assert sample["instances"].gt_affinity.shape == (len(sample["instances"]), 0)


class TestBadInput:
    def test_missing_cache(self, toy):
        cfg = config(toy, DATASETS__PATCHES_TEST=(str(toy / "nowhere"),))
        with pytest.raises(
            CacheError, match=r"nowhere.*generate_sam_patches.py --dataset toy_mapper --output .*nowhere"
        ):
            check_test_data(cfg)

    def test_wrong_number_of_caches(self, toy):
        with pytest.raises(CacheError, match=r"PATCHES_TRAIN names 0 patch caches \(\) for the 1 datasets"):
            build_train_loader(config(toy, DATASETS__PATCHES_TRAIN=()))

    def test_cache_lacks_images(self, toy, tmp_path):
        write_patches(tmp_path / "patches", "another_dataset", {"001": Patches.empty(*SIZE)})
        with pytest.raises(
            CacheError,
            match=r"another_dataset.*lacks 3 of the 4 images of toy_mapper: 002, 003, 004.*repeat",
        ):
            check_test_data(config(tmp_path))

    def test_cache_with_a_failed_image(self, toy, tmp_path):
        with CacheWriter(tmp_path / "patches", {"name": "toy"}, "toy_mapper") as writer:
            writer.add_failure("001", "out of memory")
        with pytest.raises(CacheError, match=r"lacks 4 of .* \(the first failed: out of memory\)"):
            check_test_data(config(tmp_path, DATASETS__STRICT=True))

    @pytest.mark.parametrize("split", ["TRAIN", "TEST"])
    def test_dataset_named_twice(self, toy, split):
        names, caches = ("toy_mapper", "toy_mapper"), (str(toy / "patches"), str(toy / "more"))
        cfg = config(toy, **{f"DATASETS__{split}": names, f"DATASETS__PATCHES_{split}": caches})
        with pytest.raises(CacheError, match=rf"DATASETS.{split} names 'toy_mapper' more than once.*a second name"):
            build_train_loader(cfg) if split == "TRAIN" else check_test_data(cfg)

    def test_cache_of_another_dataset_with_equal_keys(self, toy, tmp_path):
        with panoptic_dataset(tmp_path, "toy_val", seed=1):
            swapped = config(tmp_path, DATASETS__TRAIN=("toy_mapper",))
            message = r"patches are of 'toy_val', with images in .*, and not of 'toy_mapper'.*--dataset toy_mapper"
            with pytest.raises(CacheError, match=message):
                build_train_loader(swapped)

    def test_cache_of_an_unregistered_dataset_warns_once(self, toy, tmp_path, caplog):
        keys = [f"{i:03d}" for i in range(1, 5)]
        write_patches(tmp_path / "patches", "photographs", {key: Patches.empty(*SIZE) for key in keys})
        with caplog.at_level("WARNING"):
            for _ in range(2):
                check_test_data(config(tmp_path))
        assert sum("made for 'photographs', which is not registered here" in m for m in caplog.messages) == 1

    def test_patches_of_another_size(self, toy, tmp_path):
        keys = [f"{i:03d}" for i in range(1, 5)]
        write_patches(tmp_path / "patches", "toy_mapper", {key: Patches.empty(10, 20) for key in keys})
        with pytest.raises(CacheError, match=r"001.jpg: is 60 x 80 pixels.*of 10 x 20"):
            mapped(config(tmp_path), 0, is_train=False)

    def test_unregistered_dataset(self, toy):
        with pytest.raises(DataError, match=r"no dataset 'imaginary'"):
            check_test_data(config(toy, DATASETS__TEST=("imaginary",)))

    def test_dataset_with_missing_files(self, tmp_path):
        with panoptic_dataset(tmp_path, "toy_mapper"):
            (tmp_path / "panoptic.json").unlink()
            with pytest.raises(DataError, match=r"panoptic.json.*DETECTRON2_DATASETS"):
                check_test_data(config(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"this is no picture", "truncated"])
    def test_unreadable_image(self, tmp_path, content):
        with panoptic_dataset(tmp_path, "toy_mapper"):
            image = tmp_path / "images" / "001.jpg"
            image.write_bytes(image.read_bytes()[:900] if content == "truncated" else content)
            with pytest.raises(DataError, match=r"001.jpg: the image cannot be read"):
                mapped(config(tmp_path), 0, is_train=True)

    def test_missing_image(self, tmp_path):
        with panoptic_dataset(tmp_path, "toy_mapper"):
            (tmp_path / "images" / "002.jpg").unlink()
            with pytest.raises(DataError, match=r"002.jpg: the image is missing"):
                mapped(config(tmp_path), 1, is_train=True)

    def test_ground_truth_of_another_size(self, tmp_path):
        with panoptic_dataset(tmp_path, "toy_mapper"):
            Image.new("RGB", (8, 6)).save(tmp_path / "panoptic" / "001.png")
            with pytest.raises(DataError, match=r"001.png: is \(6, 8\).*image is \(60, 80\)"):
                mapped(config(tmp_path), 0, is_train=True)


def test_datasets_with_the_same_images_share_a_cache(toy, tmp_path, caplog):
    """For example, the semantic and panoptic datasets of ADE20K; symbolic links are resolved."""
    images, link = str(toy / "images"), tmp_path / "link"
    link.symlink_to(images, target_is_directory=True)
    records = [{**r, "file_name": r["file_name"].replace(images, str(link))} for r in DatasetCatalog.get("toy_mapper")]
    register("toy_linked", lambda: records, image_root=str(link))
    try:
        check_test_data(config(toy, DATASETS__TEST=("toy_linked",)))
    finally:
        unregister("toy_linked")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_images_without_ground_truth_are_skipped_in_training(toy):
    records = DatasetCatalog.get("toy_mapper")
    records[0]["segments_info"] = [s for s in records[0]["segments_info"] if s["iscrowd"]]  # only a crowd
    records[1]["segments_info"] = []
    original = DatasetCatalog["toy_mapper"]
    DatasetCatalog["toy_mapper"] = lambda: pickle.loads(pickle.dumps(records))
    try:
        loader = iter(build_train_loader(config(toy)))
        assert {sample["key"] for _ in range(6) for sample in next(loader)} == {"003", "004"}
        everything = iter(build_train_loader(config(toy, DATALOADER__FILTER_EMPTY_ANNOTATIONS=False)))
        assert {sample["key"] for _ in range(6) for sample in next(everything)} == {"001", "002", "003", "004"}
    finally:
        DatasetCatalog["toy_mapper"] = original
