"""Memory that runs out: the batch is halved, which is reported, and the patches are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proposal_cache import PatchCache
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_folder
from proposal_cache.generators.memory import halving_batches, is_out_of_memory
from proposal_cache.generators.sam import SamGenerator, SamParameters
from proposal_cache.generators.sam.decoder import PromptDecoder
from tests.proposal_cache.generation.fakes import write_images
from tests.proposal_cache.small_sam import small_sam, smooth_image

SEARCH = SamParameters(points_per_side=6, pred_iou_thresh=0.7, stability_score_thresh=0.7)
ERRORS = {
    "GPU": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of ..."
    ),
    "PyTorch on the CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory"),
    "NumPy and Python": MemoryError(),
}


def limit_batch(monkeypatch: pytest.MonkeyPatch, largest: int, error: Exception) -> list[int]:
    """Raise an error if more prompts are decoded at once; return the batches, which are added later."""
    batches: list[int] = []
    decode = PromptDecoder.decode

    def limited(self: PromptDecoder, tables: Any, points: torch.Tensor) -> Any:
        batches.append(len(points))
        if len(points) > largest:
            raise error
        return decode(self, tables, points)

    monkeypatch.setattr(PromptDecoder, "decode", limited)
    return batches


@pytest.mark.parametrize("name", ERRORS)
def test_batch_is_halved_and_the_patches_are_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    sam, image = small_sam(), smooth_image(90, 120)
    generator = SamGenerator(sam, SEARCH, memory_budget=1 << 30)
    expected = generator(image)
    assert len(expected) > 0
    batches = limit_batch(monkeypatch, 9, ERRORS[name])
    assert generator(image).rles == expected.rles
    assert max(batches) == 36, "all prompts at once, before memory runs out"
    messages = capsys.readouterr().err.splitlines()
    assert messages
    assert all(line.startswith("warning: out of memory (") for line in messages)
    assert int(messages[-1].removesuffix(" prompts").split()[-1]) <= 9
    batches.clear()
    assert generator(image).rles == expected.rles
    assert max(batches) <= 9, "the next image starts with the smaller batch"
    assert not capsys.readouterr().err


def test_image_that_needs_more_memory_with_one_prompt_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = from_folder(write_images(tmp_path / "images", 2))
    batches = limit_batch(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    generate(images, SamGenerator(small_sam(), SEARCH), tmp_path / "cache", "set", progress=False)
    assert batches[-1] == 1
    failures = PatchCache(tmp_path / "cache").manifest.failures
    assert list(failures) == ["00", "01"]
    assert failures["00"].endswith("OutOfMemoryError: CUDA out of memory")


def test_other_errors_are_not_repeated() -> None:
    assert not is_out_of_memory(RuntimeError("height and width must be > 0"))
    calls = []

    def run() -> None:
        calls.append(1)
        raise RuntimeError("height and width must be > 0")

    with pytest.raises(RuntimeError, match="height"):
        halving_batches(run, lambda: 8)
    assert len(calls) == 1


def test_batch_of_sam2_is_halved(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from proposal_cache.generators.sam2 import Sam2Generator

    generator = object.__new__(Sam2Generator)

    class Search:
        points_per_batch = 64

        def generate(self, image: np.ndarray) -> list[Any]:
            if self.points_per_batch > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return []

    generator._search = Search()  # type: ignore[assignment]
    assert len(generator(np.zeros((9, 9, 3), np.uint8))) == 0
    assert generator._search.points_per_batch == 8
    assert capsys.readouterr().err.splitlines()[-1].endswith("continuing with batches of 8 prompts")
