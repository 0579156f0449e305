"""Shared fixtures: the synthetic dataset with its patches, generated once per session."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from proposal_cache import image_key
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_list
from proposal_cache.generators.contours import ContourGenerator
from samcp.data.datasets.synthetic.prepare import make_synthetic_dataset
from samcp.data.datasets.synthetic.register import register_synthetic


def pytest_configure() -> None:
    """Restore Ctrl-C, which a background job such as `make test &` and its child processes ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Synthetic:
    """Folder of the synthetic dataset (synthetic_train and synthetic_val) and the patch caches of both splits."""

    folder: Path
    train_patches: Path
    val_patches: Path


@pytest.fixture(autouse=True)
def _seed_torch() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _temporary_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a temporary folder instead of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMCP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def _synthetic_files(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    folder = tmp_path_factory.mktemp("synthetic")
    make_synthetic_dataset(folder, num_train=6, num_val=4, size=(96, 128))
    register_synthetic(folder)
    for split in ("train", "val"):
        name = f"synthetic_{split}"
        root = MetadataCatalog.get(name).image_root
        images = from_list((image_key(r["file_name"], root), r["file_name"]) for r in DatasetCatalog.get(name))
        generate(images, ContourGenerator(parts=60, patches=60), folder / "patches" / split, name, progress=False)
    return Synthetic(folder, folder / "patches" / "train", folder / "patches" / "val")


@pytest.fixture
def synthetic(_synthetic_files: Synthetic) -> Iterator[Synthetic]:
    """Dataset of 6 + 4 drawn scenes with 60 patches per scene; tests must not change it."""
    register_synthetic(_synthetic_files.folder)
    yield _synthetic_files
    register_synthetic()  # restore the default folder
