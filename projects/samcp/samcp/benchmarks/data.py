"""Time of loading training images, compared with decoding and resizing dense masks."""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_panoptic
from detectron2.utils.env import seed_all_rng
from PIL import Image
from skimage import data, segmentation
from skimage.transform import resize
from tqdm import tqdm

from proposal_cache import CacheWriter, Patches
from proposal_cache.generators.contours import ContourGenerator
from samcp import add_samcp_config
from samcp.benchmarks.report import Table
from samcp.benchmarks.timing import Stopwatch
from samcp.config_files import find_config
from samcp.data import build_train_loader, dataset_mapper
from samcp.data.build import load_records
from samcp.data.dataset_mapper import SAMCPDatasetMapper

_CONFIG = "coco/panoptic/samcp_R50_12ep.yaml"
_NAME = "benchmark_data"
_PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "immunohistochemistry")
_PARTS = {
    "read_image": "read the image",
    "read_patches": "load the patches",
    "crop_patches": "crop the patches",
    "patch_instances": "boxes and 7 x 7 masks",
    "read_ground_truth": "read the ground truth",
    "build_targets": "targets",
}
_MASK_WORK = ("load the patches", "crop the patches", "boxes and 7 x 7 masks", "targets")
_DENSE = "decode and augment all masks"
_V100_IMAGES_PER_SECOND = 16 / 0.261 / 8
_H100_PER_V100 = 4


def tables(arguments: argparse.Namespace) -> Iterator[Table]:
    """Measure the parts of the mapper, then the loader, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if arguments.dataset is None:
                arguments.dataset = _NAME
                arguments.patches_cache = make_dataset(Path(scratch), arguments.patches)
            cfg = load_config(arguments)
            yield parts_table(cfg, arguments.images)
            yield loader_table(cfg, arguments)
    finally:
        torch.set_num_threads(threads)  # for the benchmarks after this one


def make_dataset(folder: Path, num_patches: int) -> str:
    """Write and register photographs with patches and ground truth; return the patch cache."""
    (folder / "images").mkdir()
    (folder / "panoptic").mkdir()
    images, annotations = [], []
    generator = ContourGenerator()
    with CacheWriter(folder / "patches", {"name": "contours"}, _NAME) as cache:
        for i, name in enumerate(tqdm(_PICTURES, desc="making a dataset", leave=False)):
            picture = (resize(getattr(data, name)(), (480, 640)) * 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / "images" / f"{i}.jpg", quality=95)
            found = generator(picture)
            chosen = np.random.default_rng(i).choice(len(found), num_patches, replace=num_patches > len(found))
            cache.add(str(i), found.select(chosen))
            ids = segmentation.slic(picture, n_segments=20, compactness=8, start_label=1)
            panoptic = np.stack([ids, ids * 0, ids * 0], axis=-1).astype(np.uint8)
            Image.fromarray(panoptic).save(folder / "panoptic" / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640})
            segments = [{"id": int(s), "category_id": int(s) % 4, "iscrowd": 0} for s in np.unique(ids)]
            annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    _register(folder, images, annotations)
    return str(folder / "patches")


def load_config(arguments: argparse.Namespace) -> CfgNode:
    """Return the recipe's config for the dataset."""
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(find_config(_CONFIG))
    cfg.DATASETS.TRAIN = (arguments.dataset,)
    cfg.DATASETS.PATCHES_TRAIN = (arguments.patches_cache,)
    return cfg


def parts_table(cfg: CfgNode, images: int) -> Table:
    """Measure milliseconds per image of the mapper's parts, and of dense masks."""
    records, cache = load_records(cfg.DATASETS.TRAIN[0], cfg.DATASETS.PATCHES_TRAIN[0], skip_failed=True)
    random.Random(0).shuffle(records)
    caches = {cfg.DATASETS.PATCHES_TRAIN[0]: cache}
    mapper = SAMCPDatasetMapper(cfg, is_train=True, dataset_name=cfg.DATASETS.TRAIN[0], caches=caches)
    watch = Stopwatch()
    counts: list[int] = []
    with _timed_parts(watch):
        mapper(records[0])
        watch.seconds.clear()
        for i in tqdm(range(images), desc="loading", leave=False):
            record = records[i % len(records)]
            seed_all_rng(i)
            with watch.stage("whole"):
                mapper(record)
            patches = cache[record["key"]]
            counts.append(len(patches))
            seed_all_rng(i)  # the same augmentation
            _dense(mapper, patches, watch)
    ms = {name: 1e3 * total / images for name, total in watch.seconds.items()}
    ours = sum(ms[name] for name in _MASK_WORK)
    rest = ms["whole"] - sum(ms[name] for name in _PARTS.values())
    rows = [[name, f"{ms[name]:.1f}", "", ""] for name in _PARTS.values()]
    rows += [
        ["augment the image, and the rest", f"{rest:.1f}", "", ""],
        ["whole image", f"{ms['whole']:.1f}", "", "at most 25 ms"],
        ["all work on patches and targets", f"{ours:.1f}", "1", ""],
    ]
    dense = {f"dense: {name}": ms[name] for name in ("decode all masks", _DENSE)}
    targets = {f"dense: {_DENSE}": "at least 10 times"}
    rows += [[name, f"{value:.1f}", f"{value / ours:.1f}", targets.get(name, "")] for name, value in dense.items()]
    return Table(
        "Loading a training image",
        ["", "ms per image", "times ours", "target"],
        rows,
        {name: value / ours for name, value in dense.items()},
        f"{images} images, {np.mean(counts):.0f} patches on average.",
    )


def loader_table(cfg: CfgNode, arguments: argparse.Namespace) -> Table:
    """Measure images per second of Detectron2's loader by number of worker processes."""
    consumed = _V100_IMAGES_PER_SECOND * _H100_PER_V100
    rows = []
    for workers in arguments.workers:
        loader_cfg = cfg.clone()
        loader_cfg.DATALOADER.NUM_WORKERS = workers
        loader_cfg.SOLVER.IMS_PER_BATCH = 2
        batches = iter(build_train_loader(loader_cfg))
        for _ in range(2 * workers + 1):  # until all workers have started
            next(batches)
        start = time.perf_counter()
        for _ in tqdm(range(arguments.images // 2), desc=f"{workers} workers", leave=False):
            next(batches)
        rate = 2 * (arguments.images // 2) / (time.perf_counter() - start)
        rows.append([str(workers), f"{rate:.1f}", f"{rate / consumed:.2f}"])
        del batches
    return Table(
        "The loader",
        ["workers", "images per second", f"share of {consumed:.0f} per second"],
        rows,
        note="The share is of the training speed that is estimated for an H100.",
    )


def _dense(mapper: SAMCPDatasetMapper, patches: Patches, watch: Stopwatch) -> None:
    """Decode all masks and augment each of them, as Detectron2 does."""
    image = np.zeros((patches.height, patches.width, 3), np.uint8)
    transforms: T.Transform = mapper.augmentations(T.AugInput(image))
    with watch.stage(_DENSE):
        with watch.stage("decode all masks"):
            masks = patches.decode()
        for mask in masks:
            transforms.apply_segmentation(mask.astype(np.uint8))


@contextmanager
def _timed_parts(watch: Stopwatch) -> Iterator[None]:
    """Time the functions that the mapper calls within the context."""
    with ExitStack() as patches:
        for name, part in _PARTS.items():
            function = watch.timed(part, getattr(dataset_mapper, name))
            patches.enter_context(mock.patch.object(dataset_mapper, name, function))
        yield


def _register(folder: Path, images: list[dict], annotations: list[dict]) -> None:
    """Register a dataset in COCO's panoptic format with four classes, two of them things."""
    for name, content in (("panoptic", annotations), ("instances", [])):
        categories = [{"id": i, "name": f"class {i}", "isthing": int(i < 2)} for i in range(4)]
        text = json.dumps({"images": images, "annotations": content, "categories": categories})
        (folder / f"{name}.json").write_text(text)
    metadata = {
        "thing_classes": ["class 0", "class 1"],
        "stuff_classes": [f"class {i}" for i in range(4)],
        "thing_dataset_id_to_contiguous_id": {0: 0, 1: 1},
        "stuff_dataset_id_to_contiguous_id": {2: 2, 3: 3},
    }
    files = (folder / "images", folder / "panoptic", folder / "panoptic.json", folder / "instances.json")
    if _NAME in DatasetCatalog:
        DatasetCatalog.remove(_NAME)
        MetadataCatalog.remove(_NAME)
    register_coco_panoptic(_NAME, metadata, *map(str, files))
