"""Data loaders of images and their cached patches."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch.utils.data
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm

from proposal_cache import CacheError, PatchCache, image_key
from proposal_cache.generation.sources import ImageFile, from_list
from samcp.data import datasets as _datasets  # noqa: F401  (registers them)
from samcp.data.dataset_mapper import SAMCPDatasetMapper
from samcp.data.datasets.catalog import require_registered
from samcp.data.patch_caches import cache_paths, check_keys, image_root, open_cache
from samcp.data.sampling import MappedRecords, TrainingBatches, build_sampler
from samcp.data.validation.annotations import require_instances
from samcp.data.validation.coco_json import check_jsons
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def build_train_loader(cfg: CfgNode) -> torch.utils.data.DataLoader:
    """Build the infinite training loader for DATASETS.TRAIN with the patches of DATASETS.PATCHES_TRAIN.

    It draws as Detectron2's, in an order that its ``batch_sampler``, a TrainingBatches, can continue.

    Raises:
        DataError: a dataset cannot be read, or the datasets have different classes.
        CacheError: a cache is missing or damaged, or lacks patches of an image.
        UsageError: DATALOADER.SAMPLER_TRAIN is not supported.
    """
    paths = cache_paths(cfg, is_train=True)
    if not paths:
        raise DataError("DATASETS.TRAIN is empty; add, for example: DATASETS.TRAIN \"('coco_2017_train_panoptic',)\"")
    records: list[Record] = []
    caches: dict[str, PatchCache] = {}
    for name, path in paths.items():
        found, caches[path] = load_records(name, path, skip_failed=not cfg.DATASETS.STRICT)
        _warn_about_skipped(name, failed_records(cfg, name, is_train=True))
        records += _with_ground_truth(found) if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else found
    _check_same_labels(list(paths))
    logger.info("Training on %d images of %s", len(records), ", ".join(paths))
    mapper = SAMCPDatasetMapper(cfg, is_train=True, dataset_name=cfg.DATASETS.TRAIN[0], caches=caches)
    batches = TrainingBatches(
        build_sampler(cfg, records),
        cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        groups=_is_wide(records, caches) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    return torch.utils.data.DataLoader(
        MappedRecords(records, mapper),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # otherwise starting the workers would change the random numbers of the model
    )


def _is_wide(records: Sequence[Record], caches: Mapping[str, PatchCache]) -> list[bool]:
    """Return whether each image is wider than high, by its size in the patch cache: not all records have sizes."""
    sizes = [caches[record["patches_path"]].image_size(record["key"]) for record in records]
    return [width > height for height, width in sizes]


def build_test_loader(cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
    """Build Detectron2's test loader, one image per batch, for one of DATASETS.TEST with its DATASETS.PATCHES_TEST.

    Raises:
        DataError, CacheError: as :func:`build_train_loader`.
    """
    path = cache_paths(cfg, is_train=False)[dataset_name]
    records, cache = load_records(dataset_name, path, skip_failed=not cfg.DATASETS.STRICT)
    mapper = SAMCPDatasetMapper(cfg, is_train=False, dataset_name=dataset_name, caches={path: cache})
    return build_detection_test_loader(records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def check_test_data(cfg: CfgNode) -> None:
    """Load every test dataset and its patch cache, so that their errors are raised before training.

    Raises:
        DataError, CacheError: as :func:`build_train_loader`.
    """
    for name, path in cache_paths(cfg, is_train=False).items():
        load_records(name, path, skip_failed=not cfg.DATASETS.STRICT)


def failed_records(cfg: CfgNode, dataset_name: str, *, is_train: bool) -> list[Record]:
    """Return the records of a dataset whose patches could not be generated, each with "failure", the reason.

    Returns an empty list with DATASETS.STRICT, with which such images are an error.

    Raises:
        DataError, CacheError: as :func:`build_train_loader`.
    """
    path = cache_paths(cfg, is_train)[dataset_name]
    failures = {} if cfg.DATASETS.STRICT else open_cache(path, dataset_name).manifest.failures
    if not failures:  # the usual case; the records of a large dataset take long to load
        return []
    records, _ = find_patches(load_dataset(dataset_name), dataset_name, path)
    return [{**record, "failure": failures[record["key"]]} for record in records if record["key"] in failures]


def load_records(dataset: str, cache_path: str, *, skip_failed: bool = False) -> tuple[list[Record], PatchCache]:
    """Load a dataset's records and its patch cache.

    Args:
        dataset: a registered name.
        cache_path: of its patches.
        skip_failed: skip images whose patches could not be generated, such as damaged files.

    Returns:
        The records, each with "key", "patches_path" and "dataset_name" added for the mapper; and the cache, which has
        patches for all of them.

    Raises:
        DataError, CacheError: as :func:`build_train_loader`.
    """
    records, cache = find_patches(load_dataset(dataset), dataset, cache_path)
    if skip_failed:
        records = [record for record in records if record["key"] not in cache.manifest.failures]
        if not records:
            raise CacheError(
                f"{cache_path}: the generation of patches failed for all images of {dataset}; `proposal-cache info "
                f"{cache_path}` prints the reasons"
            )
    check_keys(cache, dataset, [record["key"] for record in records])
    return records, cache


def find_patches(records: list[Record], dataset: str, cache_path: str) -> tuple[list[Record], PatchCache]:
    """Add "key", "patches_path" and "dataset_name" to records, and open the cache, which may lack some of the keys.

    Raises:
        CacheError: the cache is missing, damaged, or of other images; or the dataset's metadata have no image root.
    """
    root = image_root(dataset)
    for record in records:
        record |= {"key": image_key(record["file_name"], root), "patches_path": cache_path, "dataset_name": dataset}
    return records, open_cache(cache_path, dataset)


def load_dataset(name: str) -> list[Record]:
    """Load Detectron2's records of a registered dataset.

    Raises:
        DataError: the dataset is not registered, cannot be read, has no images, or its json has an invalid entry.
    """
    require_registered(name)
    metadata = MetadataCatalog.get(name)
    panoptic, instances = metadata.get("panoptic_json"), metadata.get("json_file")
    try:
        if metadata.get("evaluator_type") == "coco" and instances and os.path.isfile(instances):
            require_instances(instances)
        records = DatasetCatalog.get(name)
    except DataError:
        raise
    except CacheError as error:
        raise DataError(f"dataset {name!r} cannot be read: {error}") from error
    except OSError as error:
        raise _missing_files(name, error) from error
    except (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if problems := check_jsons(panoptic, instances):
            raise DataError(problems[0]) from error
        if isinstance(error, AssertionError):  # Detectron2's, if an image or label map is missing
            raise _missing_files(name, error) from error
        raise DataError(f"dataset {name!r} cannot be read: {error!r}") from error
    if not records:
        raise DataError(f"dataset {name!r} has no images")
    return records


def dataset_images(name: str) -> list[ImageFile]:
    """Return the images of a registered dataset, with the keys under which training looks up their patches.

    Raises:
        DataError: as `load_dataset`.
        CacheError: the metadata have no image_root, an image is not below it, or two images have the same key.
    """
    files = [record["file_name"] for record in load_dataset(name)]
    root = image_root(name)
    return from_list(((image_key(file, root), file) for file in files), name)


def _missing_files(name: str, error: Exception) -> DataError:
    folder = os.environ.get("DETECTRON2_DATASETS")
    where = f"DETECTRON2_DATASETS is {folder}" if folder else "DETECTRON2_DATASETS is not set: ./datasets is used"
    return DataError(f"dataset {name!r} cannot be read: {error}. {where}; set it to the folder that holds the dataset")


def _warn_about_skipped(dataset: str, failed: Sequence[Record]) -> None:
    if failed:
        logger.warning(
            "%s: %d images are skipped, since their patches could not be generated (--strict stops instead); the first "
            "is %s: %s",
            dataset,
            len(failed),
            failed[0]["file_name"],
            failed[0]["failure"],
        )


def _with_ground_truth(records: list[Record]) -> list[Record]:
    """Select the records with ground truth."""
    kept = [record for record in records if is_labelled(record)]
    if not kept:
        raise DataError("no training image has any ground truth; see DATALOADER.FILTER_EMPTY_ANNOTATIONS")
    if len(kept) < len(records):
        logger.info("Skipped %d of %d images without ground truth", len(records) - len(kept), len(records))
    return kept


def is_labelled(record: Record) -> bool:
    """Return whether a record has ground truth: a label PNG, or a segment that is not a crowd."""
    segments = record.get("segments_info", record.get("annotations"))
    if segments is None:
        return "sem_seg_file_name" in record
    return any(not segment.get("iscrowd", 0) for segment in segments)


def _check_same_labels(names: Sequence[str]) -> None:
    """Raise DataError if datasets that are trained on together have different classes or ignore labels."""
    labels = {name: (Vocabulary.of_dataset(name), MetadataCatalog.get(name).get("ignore_label")) for name in names}
    different = [name for name in names if labels[name] != labels[names[0]]]
    if different:
        raise DataError(
            f"DATASETS.TRAIN: classes or ignore_label of {different[0]!r} differ from those of {names[0]!r}; "
            "datasets that are trained on together must share both"
        )
