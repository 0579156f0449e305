"""Toy panoptic dataset in COCO's layout with a patch cache, registered in Detectron2."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from PIL import Image

from proposal_cache import CacheWriter, Patches

NAMES = ["disc", "square", "sky", "grass"]
NUM_THINGS = 2
SIZE = (60, 80)
_COLORS = [(220, 40, 40), (240, 220, 60), (120, 170, 240), (60, 150, 60)]
_CATEGORY_IDS = [11, 22, 33, 44]  # not contiguous, as in COCO
_GENERATOR = {"name": "toy"}


@contextmanager
def panoptic_dataset(
    root: Path, name: str, *, count: int = 4, seed: int = 0, patches: bool = True, things_only: bool = False
) -> Iterator[str]:
    """Write and register `count` scenes of discs and squares between sky and grass.

    Image 1 has a crowd of discs, and the left edge of every image is void. The cache at root/patches contains the left
    half, the right half and the whole of each segment. A dataset that was registered under the same name is restored
    on exit.

    Args:
        patches: whether to write the cache.
        things_only: whether sky and grass are void, too.

    Yields:
        name of the registered dataset.
    """
    (root / "images").mkdir(parents=True)
    (root / "panoptic").mkdir()
    rng = np.random.default_rng(seed)
    scenes = {i: _draw(rng, with_crowd=i == 1) for i in range(1, count + 1)}
    if things_only:
        scenes = {
            i: (image, np.where(ids > 2, ids, 0), _things(segments)) for i, (image, ids, segments) in scenes.items()
        }
    panoptic: list[dict] = []
    instances: list[dict] = []
    for image_id, (image, ids, segments) in scenes.items():
        Image.fromarray(image).save(root / "images" / f"{image_id:03d}.jpg", quality=95)
        Image.fromarray(np.stack([ids, ids * 0, ids * 0], axis=-1).astype(np.uint8)).save(
            root / "panoptic" / f"{image_id:03d}.png"
        )
        panoptic.append({"image_id": image_id, "file_name": f"{image_id:03d}.png", "segments_info": segments})
        instances += [_annotation(ids, s, image_id, len(instances) + i) for i, s in enumerate(_things(segments))]
    _write_json(root / "panoptic.json", scenes, panoptic)
    _write_json(root / "instances.json", scenes, instances)
    if patches:
        write_patches(root / "patches", name, {f"{i:03d}": split_segments(ids) for i, (_, ids, _) in scenes.items()})
    previous = (DatasetCatalog.pop(name, None), MetadataCatalog.pop(name, None))
    register_coco_panoptic(
        name,
        _metadata(),
        str(root / "images"),
        str(root / "panoptic"),
        str(root / "panoptic.json"),
        str(root / "instances.json"),
    )
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        if previous[0]:
            DatasetCatalog[name], MetadataCatalog[name] = previous


def write_patches(path: Path, dataset: str, patches: dict[str, Patches]) -> None:
    """Write a patch cache."""
    with CacheWriter(path, _GENERATOR, dataset) as writer:
        for key, value in patches.items():
            writer.add(key, value)


def split_segments(ids: np.ndarray) -> Patches:
    """Return the left half, the right half and the whole of each segment of ids (H, W) as patches."""
    masks = []
    for i in np.unique(ids[ids > 0]):
        mask = ids == i
        middle = int(np.median(np.nonzero(mask)[1]))
        left, right = mask.copy(), mask.copy()
        left[:, middle:], right[:, :middle] = False, False
        masks += [part for part in (left, right, mask) if part.any()]
    return Patches.from_masks(np.stack(masks))


def _metadata() -> dict:
    contiguous = dict(zip(_CATEGORY_IDS, range(len(NAMES)), strict=True))
    return {
        # All names are in both lists, as in Detectron2's "standard" panoptic metadata.
        "thing_classes": NAMES,
        "stuff_classes": NAMES,
        "thing_colors": _COLORS,
        "stuff_colors": _COLORS,
        "thing_dataset_id_to_contiguous_id": {k: v for k, v in contiguous.items() if v < NUM_THINGS},
        "stuff_dataset_id_to_contiguous_id": {k: v for k, v in contiguous.items() if v >= NUM_THINGS},
    }


def _draw(rng: np.random.Generator, with_crowd: bool) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Return an image (H, W, 3), its segment ids (H, W) and its segments_info."""
    height, width = SIZE
    ys, xs = np.mgrid[:height, :width]
    horizon = int(rng.integers(20, 40))
    classes = [2, 3]
    ids = np.where(ys < horizon, 1, 2)
    for column in range(3):
        x, y, radius = 14 + 24 * column, int(rng.integers(14, 46)), int(rng.integers(6, 11))
        label = int(rng.integers(NUM_THINGS))
        distance = np.hypot(ys - y, xs - x) if label == 0 else np.maximum(np.abs(ys - y), np.abs(xs - x))
        classes.append(label)
        ids[distance <= radius] = len(classes)
    if with_crowd:
        classes.append(0)
        ids[50:58, 4:40] = len(classes)
    ids[:, :2] = 0
    colors = np.array([(0, 0, 0), *(_COLORS[c] for c in classes)])
    image = np.clip(colors[ids] + rng.normal(0, 12, (*SIZE, 3)), 0, 255).astype(np.uint8)
    segments = [
        {
            "id": i,
            "category_id": _CATEGORY_IDS[classes[i - 1]],
            "iscrowd": int(with_crowd and i == len(classes)),
            "area": int((ids == i).sum()),
            "bbox": _xywh(ids == i),
        }
        for i in range(1, len(classes) + 1)
        if (ids == i).any()
    ]
    return image, ids, segments


def _things(segments: list[dict]) -> list[dict]:
    return [s for s in segments if s["category_id"] in _CATEGORY_IDS[:NUM_THINGS]]


def _annotation(ids: np.ndarray, segment: dict, image_id: int, number: int) -> dict:
    rle = mask_util.encode(np.asfortranarray(ids == segment["id"], dtype=np.uint8))
    rle["counts"] = rle["counts"].decode()
    return {**segment, "id": number + 1, "image_id": image_id, "segmentation": rle}


def _xywh(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [int(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]


def _write_json(path: Path, scenes: dict, annotations: list[dict]) -> None:
    height, width = SIZE
    images = [{"id": i, "file_name": f"{i:03d}.jpg", "height": height, "width": width} for i in scenes]
    panoptic = path.stem == "panoptic"
    categories = [
        {"id": _CATEGORY_IDS[i], "name": name, "isthing": int(i < NUM_THINGS), "color": _COLORS[i]}
        for i, name in enumerate(NAMES)
        if panoptic or i < NUM_THINGS
    ]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))
