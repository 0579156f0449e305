"""Reading of files of torch.save, and half precision."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from proposal_cache.torch_files import halve, read_torch_file


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"model": {"a": torch.arange(2000.0), "b": torch.ones(3, 5)}}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_no_flipped_bit_changes_the_weights(weights: Path) -> None:
    """torch.load returns other weights for most of them."""
    content, expected = weights.read_bytes(), read_torch_file(weights)["model"]
    random = np.random.default_rng(0)
    rejected = 0
    for position in random.integers(0, len(content), 150).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(random.integers(8))
        weights.write_bytes(damaged)
        try:
            found = read_torch_file(weights)["model"]
        except ValueError:
            rejected += 1
        else:  # padding
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert rejected > 120


def test_files_without_checksums(weights: Path) -> None:
    torch.save({"a": torch.ones(2)}, weights, _use_new_zipfile_serialization=False)
    assert read_torch_file(weights, mapped=True)["a"].tolist() == [1, 1]


def test_unreadable_files(weights: Path) -> None:
    whole = weights.read_bytes()
    code = io.BytesIO()
    torch.save(Path("x"), code)
    for content, message in ((b"", "it is empty"), (whole[:999], ""), (b"text", ""), (code.getvalue(), "[Ww]eights")):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_torch_file(weights)
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        read_torch_file(weights)


def test_half_precision_keeps_values_above_its_range() -> None:
    tensors = {
        "weight": torch.tensor([1.0, float("-inf")]),
        "running_var": torch.tensor([0.5, 1e6]),
        "count": torch.tensor([70000]),
    }
    halves = halve(tensors)
    assert {name: t.dtype for name, t in halves.items()} == {
        "weight": torch.float16,
        "running_var": torch.float32,
        "count": torch.int64,
    }
    assert all(torch.equal(halves[name].to(t.dtype), t) for name, t in tensors.items())
