"""Formats of files that the product reads: how a valid one is written, mutated and read."""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image
from torch import nn

from proposal_cache import PatchCache, finalize
from proposal_cache.generation.sources import read_image
from proposal_cache.generation.streams import TarShard
from proposal_cache.interchange.coco import InterchangeError, import_panoptic, import_results
from proposal_cache.interchange.sa1b import import_sa1b
from samcp import add_samcp_config
from samcp.checkpoint import Checkpointer
from samcp.command_line import training_parser
from samcp.config import load_config
from samcp.config_files import CONFIGS
from samcp.data.build import load_dataset
from samcp.data.datasets.catalog import unregister
from samcp.data.datasets.custom.register import register_file
from samcp.data.ground_truth import read_ground_truth
from samcp.export import ModelFile
from samcp.vocabulary import Vocabulary
from tests.fuzz.mutations import mutate_bytes, mutate_tree, nest
from tests.perfect_model import evaluate_truth
from tests.proposal_cache.toy_cache import make_patches, write
from tests.samcp.data.datasets.test_custom import SIZE, write_data

Mutate = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Format:
    """Format of a file.

    Attributes:
        write: writes a valid file, with all that is needed to read it, into a folder and returns its path.
        read: reads the file and returns a value to compare.
        mutate: changes the content of the file.
        checked: whether the format has checksums, so that a changed file must be rejected or give the same value.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    mutate: Mutate = mutate_bytes
    checked: bool = False


def mutate_json(content: bytes, random: np.random.Generator) -> bytes:
    """Change the values of a json in four of five cases, and its bytes in the others."""
    kind = int(random.integers(50))
    if kind == 0:
        return nest()
    if kind < 10:
        return mutate_bytes(content, random)
    return json.dumps(mutate_tree(json.loads(content), random)).encode()


def mutate_yaml(content: bytes, random: np.random.Generator) -> bytes:
    """Change the values of a yaml in half of the cases, and its bytes in the others."""
    if random.integers(2):
        return mutate_bytes(content, random)
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_dump(mutate_tree(yaml.safe_load(content), random)).encode(errors="replace")
    return nest(900)


def _save_picture(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.kron(pixels, np.ones((2, 2, 1), np.uint8))).save(folder / name, exif=exif)
        return folder / name

    return write


def _data_file(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_data(folder)
        return folder / name

    return write


def _read_labels(path: Path) -> Any:
    record = {"file_name": "one.jpg", "sem_seg_file_name": str(path)}
    return read_ground_truth(record, SIZE, num_classes=2, ignore_label=255).masks.rles


def _evaluate(description: str, dataset: str) -> Callable[[Path], Any]:
    """Return a function that reads a dataset as in training and evaluates its ground truth."""

    def read(path: Path) -> Any:
        with _registrations():
            register_file(next(folder / description for folder in path.parents if (folder / description).exists()))
            load_dataset(dataset)
            return str(evaluate_truth(dataset, path.parent / "out"))

    return read


def _read_description(path: Path) -> Any:
    with _registrations():
        return [load_dataset(name) for name in register_file(path)]


@contextlib.contextmanager
def _registrations() -> Iterator[None]:
    """Remove the datasets that the block registers."""
    before = set(DatasetCatalog)
    try:
        yield
    finally:
        for name in set(DatasetCatalog) - before:
            unregister(name)


def _cache_file(pattern: str) -> Callable[[Path], Path]:
    def write_cache(folder: Path) -> Path:
        write(folder, range(12), shard_size=6, failures={"bad": "empty"})
        (folder / "failures-r001.jsonl").write_text('{"key": "worse", "reason": "damaged"}\n')
        return next(iter(sorted(folder.glob(pattern))))

    return write_cache


def _read_cache(path: Path) -> Any:
    cache = PatchCache(path.parent)
    return [(key, patches.rles, patches.areas.tolist()) for key, patches in cache.items()]


def _finalize(path: Path) -> Any:
    finalize(path.parent)
    return _read_cache(path)


def _checkpoint(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        cfg = _small_config(folder)
        Checkpointer(nn.Linear(40, 30), cfg).save(name)
        return folder / f"{name}.pth"

    return write


def _small_config(folder: Path) -> Any:
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def _read_checkpoint(path: Path) -> Any:
    model = nn.Linear(40, 30)
    Checkpointer(model, _small_config(path.parent)).load(str(path))
    return _digest(model.state_dict())


def _write_model_file(folder: Path) -> Path:
    ModelFile({"a": torch.ones(3)}, get_cfg().dump(), Vocabulary.parse("kite, sea~")).save(folder / "model.safetensors")
    return folder / "model.safetensors"


def _read_model_file(path: Path) -> Any:
    file = ModelFile.load(path)
    return _digest(file.tensors), file.config, file.vocabulary


def _write_config(folder: Path) -> Path:
    (folder / "own.yaml").write_bytes((CONFIGS / "miniature" / "panoptic.yaml").read_bytes())
    text = (folder / "own.yaml").read_text().replace("../_base_", str(CONFIGS / "_base_"))
    (folder / "own.yaml").write_text(text)
    return folder / "own.yaml"


def _read_config(path: Path) -> Any:
    return load_config(training_parser("").parse_args(["--config-file", str(path), "MODEL.DEVICE", "cpu"]))


def _write_vocabulary(folder: Path) -> Path:
    (folder / "words.txt").write_text("# classes\nkite, dragon\nboat: ship | vessel\nsea~: water\n")
    return folder / "words.txt"


def _write_tar(folder: Path) -> Path:
    with tarfile.open(folder / "images.tar", "w") as tar:
        for i in range(3):
            encoded = io.BytesIO()
            Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8)).save(encoded, "PNG")
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(encoded.getvalue())
            tar.addfile(member, io.BytesIO(encoded.getvalue()))
    return folder / "images.tar"


def _read_tar(path: Path) -> Any:
    return [read_image(f"{path}/{key}", data).tobytes() for key, _, data in TarShard(str(path)).members({".png"})]


def _write_results(folder: Path) -> Path:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 12, "width": 20} for i in range(2)]
    (folder / "images.json").write_text(json.dumps({"images": images}))
    forms = [{"size": [12, 20], "counts": [100, 40, 100]}, [[1, 1, 9, 1, 9, 9]]]
    entries = [{"image_id": i, "category_id": 1, "segmentation": s, "score": 0.5} for i, s in enumerate(forms)]
    (folder / "results.json").write_text(json.dumps(entries))
    return folder / "results.json"


def _import_results(path: Path) -> Any:
    import_results(path, path.with_name("images.json"), path.parent / "cache", "toys")
    return [patches.rles for patches in PatchCache(path.parent / "cache").values()]


def _import_panoptic(path: Path) -> Any:
    import_panoptic(path, path.parent / "pngs", path.parent / "cache", "toys")
    return [patches.rles for patches in PatchCache(path.parent / "cache").values()]


def _write_sa1b(folder: Path) -> Path:
    patches = make_patches(5)
    masks = [
        {"segmentation": {"size": [patches.height, patches.width], "counts": counts.decode()}, "predicted_iou": 0.9}
        | {"stability_score": 0.9, "id": i}
        for i, counts in enumerate(patches.rles)
    ]
    image = {"file_name": "sa_1.jpg", "height": patches.height, "width": patches.width, "image_id": 1}
    (folder / "sa_1.json").write_text(json.dumps({"image": image, "annotations": masks}))
    return folder / "sa_1.json"


def _import_sa1b(path: Path) -> Any:
    import_sa1b(str(path.parent), path.parent / "cache", "toys")
    cache = PatchCache(path.parent / "cache")
    if cache.manifest.failures:  # an invalid file is reported and skipped
        raise InterchangeError(f"{path}: {cache.manifest.failures}")
    return [patches.rles for patches in cache.values()]


def _digest(tensors: Any) -> str:
    return hashlib.sha256(repr([(name, tensor.tolist()) for name, tensor in tensors.items()]).encode()).hexdigest()


FORMATS = {
    "image.png": Format(_save_picture("a.png"), lambda path: read_image(path).tobytes(), checked=True),
    "image.jpg": Format(_save_picture("a.jpg"), lambda path: read_image(path).shape),
    "image.tif": Format(_save_picture("a.tif"), lambda path: read_image(path).shape),
    "label map": Format(_data_file("labels/one.png"), _read_labels, checked=True),
    "panoptic PNG": Format(_data_file("pngs/0.png"), _evaluate("beach.yaml", "own_panoptic"), checked=True),
    "panoptic json": Format(_data_file("panoptic.json"), _evaluate("beach.yaml", "own_panoptic"), mutate_json),
    "instances json": Format(_data_file("instances.json"), _evaluate("kites.yaml", "own_instances"), mutate_json),
    "instances beside panoptic": Format(
        _data_file("instances.json"), _evaluate("beach.yaml", "own_panoptic"), mutate_json
    ),
    "yaml of a dataset": Format(_data_file("beach.yaml"), _read_description, mutate_yaml),
    "config": Format(_write_config, _read_config, mutate_yaml),
    "vocabulary": Format(_write_vocabulary, lambda path: Vocabulary.read(str(path))),
    "shard": Format(_cache_file("shard-*"), _read_cache, checked=True),
    "index": Format(_cache_file("index-*"), _read_cache, checked=True),
    "manifest": Format(_cache_file("manifest.json"), _read_cache, mutate_json),
    "failure journal": Format(_cache_file("failures-r001.jsonl"), _finalize),
    "checkpoint": Format(_checkpoint("model"), _read_checkpoint, checked=True),
    "model file": Format(_write_model_file, _read_model_file),
    "tar": Format(_write_tar, _read_tar),
    "COCO results": Format(_write_results, _import_results, mutate_json),
    "panoptic import": Format(_data_file("panoptic.json"), _import_panoptic, mutate_json),
    "SA-1B": Format(_write_sa1b, _import_sa1b, mutate_json),
}
