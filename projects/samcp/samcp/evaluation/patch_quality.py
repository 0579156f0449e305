"""Quality of patches: how well they fit the ground-truth objects of a dataset, without a model (Table 9)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from proposal_cache import PatchCache, Patches, rle
from samcp.data.affinity_targets import Entities, TargetRules
from samcp.data.build import find_patches, load_dataset
from samcp.data.ground_truth import GroundTruth, annotated_size, read_ground_truth
from samcp.data.parallel import parallel_map
from samcp.data.patch_caches import check_keys, read_patches
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

_FOUND = 0.5  # least IoU of an object that counts in mIoU>0.5
_MISSED = (0.25, 0.5, 0.75)  # an object is missed if no patch exceeds this IoU
# COCO's sizes: [least, below) in pixels.
_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}

_RULES = TargetRules()  # METHOD 6 with the defaults of the configs

Record = Mapping[str, Any]
Metrics = dict[str, float]


@dataclass(frozen=True, eq=False)
class ObjectFits:
    """Ground-truth objects of one or more images, K in all, with the IoU of their patches.

    Attributes:
        classes: (K,) int64 contiguous class ids, over things and stuff together.
        is_thing: (K,) bool.
        areas: (K,) int64 pixels.
        best: (K,) float64, highest IoU of a single patch; 0 if the image has no patches.
        merged: (K,) float64, IoU of the union of all patches that belong to the object (METHOD 6); 0 if none does.
    """

    classes: np.ndarray
    is_thing: np.ndarray
    areas: np.ndarray
    best: np.ndarray
    merged: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def concatenate(cls, parts: Sequence["ObjectFits"]) -> "ObjectFits":
        """Concatenate the objects of one or more images, in order."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def select(self, which: np.ndarray) -> "ObjectFits":
        """Select objects by a mask (K,) bool."""
        return ObjectFits(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def groups(self) -> Iterator[tuple[str, "ObjectFits"]]:
        """Yield (name, objects) of things and stuff, in total and by COCO's sizes, then of all; skip empty groups."""
        kinds = {"things": self.is_thing, "stuff": ~self.is_thing}
        for kind, members in kinds.items():
            yield from self._group(kind, members)
            for size, (least, below) in _SIZES.items():
                yield from self._group(f"{kind}, {size}", members & (self.areas >= least) & (self.areas < below))
        if all(members.any() for members in kinds.values()):
            yield "all", self

    def of_classes(self) -> Iterator[tuple[int, "ObjectFits"]]:
        """Yield (class id, objects) in ascending order of the mean best IoU; skip classes without objects."""
        parts = [(int(c), self.select(self.classes == c)) for c in np.unique(self.classes)]
        yield from sorted(parts, key=lambda part: part[1].best.mean())

    def _group(self, name: str, members: np.ndarray) -> Iterator[tuple[str, "ObjectFits"]]:
        if members.any():
            yield name, self.select(members)


@dataclass(frozen=True, eq=False)
class PatchQuality:
    """Patch quality on a dataset.

    Attributes:
        cache: the patch cache.
        images: number of images.
        failures: image key -> reason, for images whose patches could not be generated; they count as without patches.
        patches: number of patches in all images.
        fits: all objects.
    """

    cache: PatchCache
    images: int
    failures: Mapping[str, str]
    patches: int
    fits: ObjectFits


def measure_dataset(
    name: str, cache_path: str, *, limit: int | None = None, workers: int = 1, strict: bool = False
) -> PatchQuality:
    """Measure the patches of a registered dataset against its ground truth, with a progress bar.

    Args:
        name: of the dataset.
        cache_path: of its patches.
        limit: use only the first images.
        workers: number of processes.
        strict: raise CacheError for images whose patches could not be generated, instead of counting their objects
            as missed.

    Raises:
        DataError: the dataset or its ground truth cannot be read, or has no objects.
        CacheError: the cache is missing or damaged, lacks images, or has images of another size.
    """
    records, cache = find_patches(load_dataset(name)[:limit], name, cache_path)
    failures = {r["key"]: cache.manifest.failures[r["key"]] for r in records if r["key"] in cache.manifest.failures}
    check_keys(cache, name, [record["key"] for record in records if strict or record["key"] not in failures])
    measure = partial(
        _measure_record,
        cache=cache,
        num_classes=len(Vocabulary.of_dataset(name).names),
        ignore_label=MetadataCatalog.get(name).get("ignore_label", 255),
    )
    measured = parallel_map(records, measure, workers=workers, title=name)
    fits = ObjectFits.concatenate([part for part, _ in measured])
    if not len(fits):
        raise DataError(
            f"dataset {name!r}: its {len(records)} images have no ground-truth objects to compare patches with; name "
            "an annotated split"
        )
    return PatchQuality(cache, len(records), failures, sum(count for _, count in measured), fits)


def measure_image(patches: Patches, truth: GroundTruth) -> ObjectFits:
    """Measure the patches of one image against its objects: the non-empty segments that are not crowds.

    Decodes no mask: best IoUs follow from the IoP (N, K) of N patches and K objects, computed on RLEs.
    """
    kept = np.flatnonzero(~truth.is_crowd & (truth.masks.areas > 0))
    objects = truth.masks.select(kept)
    entities = Entities.of_segments(np.eye(len(kept), dtype=bool), truth.classes[kept], objects, patches)
    common = np.rint(entities.mask_iop.T * patches.areas[:, None])
    iou = common / (patches.areas[:, None] + objects.areas - common)
    is_thing = truth.is_thing[kept]
    (as_thing, _), (as_stuff, _) = (rule.compare(patches, entities) for rule in (_RULES.instances, _RULES.semantic))
    belongs = np.where(is_thing[:, None], as_thing, as_stuff)
    merged = np.flatnonzero(belongs.any(axis=0))
    groups = [np.flatnonzero(members).tolist() for members in belongs[:, merged]]
    unions = patches.select(merged).union(groups)
    return ObjectFits(
        classes=truth.classes[kept],
        is_thing=is_thing,
        areas=objects.areas,
        best=iou.max(axis=0, initial=0.0),
        merged=rle.iou(unions, objects.rles, objects.height, objects.width).diagonal(),
    )


def iou_metrics(iou: np.ndarray) -> Metrics:
    """Compute the columns of Table 9, in percent.

    Args:
        iou: (K,) IoU of K objects, such as :attr:`ObjectFits.best`.

    Returns:
        "mIoU": the mean; "mIoU>0.5": the mean of the IoUs above 0.5; "MR 0.25", "MR 0.5", "MR 0.75": the missing
        rates, the share of objects whose IoU does not exceed that. NaN for an empty mean.
    """
    found = iou[iou > _FOUND]
    values = {"mIoU": iou, f"mIoU>{_FOUND}": found} | {f"MR {least}": iou <= least for least in _MISSED}
    return {name: 100 * float(of.mean()) if len(of) else math.nan for name, of in values.items()}


def _measure_record(
    record: Record, *, cache: PatchCache, num_classes: int, ignore_label: int
) -> tuple[ObjectFits, int]:
    """Return the objects of one image and its number of patches."""
    size = annotated_size(record)
    truth = read_ground_truth(record, size, num_classes=num_classes, ignore_label=ignore_label)
    failed = record["key"] in cache.manifest.failures
    patches = Patches.empty(*size) if failed else read_patches(cache, record, size)
    return measure_image(patches, truth), len(patches)
