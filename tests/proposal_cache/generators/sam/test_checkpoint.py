"""Loading of valid and invalid SAM checkpoints."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam

from proposal_cache import CacheError
from proposal_cache.generators.sam import SamGenerator
from proposal_cache.generators.sam import checkpoint as checkpoint_module
from tests.proposal_cache.small_sam import build_small_sam, small_sam, smooth_image


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace SAM's three model types by models of widths 32, 48 and 64."""
    widths = {"vit_b": 32, "vit_l": 48, "vit_h": 64}
    for model_type, width in widths.items():
        monkeypatch.setitem(checkpoint_module.ENCODER_WIDTHS, model_type, width)
        monkeypatch.setitem(checkpoint_module.sam_model_registry, model_type, _Builder(width))


class _Builder:
    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, checkpoint: None) -> Sam:
        return build_small_sam(width=self.width)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "sam_vit_b.pth"
    torch.save(small_sam(seed=1).state_dict(), path)
    return path


def test_load(checkpoint: Path) -> None:
    generator = SamGenerator.from_checkpoint(
        "vit_b", checkpoint, points_per_side=4, pred_iou_thresh=0.6, stability_score_thresh=0.5
    )
    description = generator.describe()
    assert description["model_type"] == "vit_b"
    assert description["points_per_side"] == 4
    assert description["weights_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    patches = generator(smooth_image(120, 160))
    same = SamGenerator(small_sam(seed=1), generator.parameters)(smooth_image(120, 160))
    assert patches.rles == same.rles
    assert len(patches) > 0


def error_of(model_type: str, path: Path) -> str:
    with pytest.raises(CacheError) as error:
        SamGenerator.from_checkpoint(model_type, path)
    return str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    message = error_of("vit_h", tmp_path / "absent.pth")
    assert "absent.pth" in message
    assert "https://" in message


def test_wrong_model_type(checkpoint: Path) -> None:
    message = error_of("vit_h", checkpoint)
    assert str(checkpoint) in message
    assert "not vit_h" in message
    assert "use model type vit_b" in message


def test_unknown_model_type(checkpoint: Path) -> None:
    assert "no model type 'vit_x'; choose one of vit_h, vit_l, vit_b" in error_of("vit_x", checkpoint)


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"PK\x03\x04 cut short", bytes(100)], ids=["page", "zip", "zeros"]
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    message = error_of("vit_b", path)
    assert f"{path} is not a checkpoint, or damaged" in message
    assert "mmap" not in message


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file.pth").touch()
    assert "file.pth is empty; download it again" in error_of("vit_b", tmp_path / "file.pth")


def test_older_pytorch_format(tmp_path: Path) -> None:
    weights = small_sam(seed=1).state_dict()
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = SamGenerator.from_checkpoint("vit_b", tmp_path / "old.pth").sam.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_truncated_file(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert "or damaged" in error_of("vit_b", checkpoint)


class _Malicious:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_code_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "malicious.pth"
    torch.save({"image_encoder.pos_embed": _Malicious()}, path)
    assert "malicious.pth is not a checkpoint" in error_of("vit_b", path)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [{"model": {}}, [1, 2], {"image_encoder.pos_embed": torch.zeros(1, 4, 4, 7)}], ids=str
)
def test_checkpoint_of_another_model(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert f"{path} is not a SAM checkpoint" in error_of("vit_b", path)


def test_missing_layer(checkpoint: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)
    del weights["mask_decoder.iou_token.weight"]
    torch.save(weights, checkpoint)
    message = error_of("vit_b", checkpoint)
    assert str(checkpoint) in message
    assert "mask_decoder.iou_token.weight" in message
