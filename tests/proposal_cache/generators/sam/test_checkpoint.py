"""Loading of valid and invalid SAM checkpoints."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from proposal_cache import CacheError
from proposal_cache.generators.sam import SamGenerator
from proposal_cache.generators.sam import checkpoint as checkpoint_module
from tests.proposal_cache.small_sam import build_small_sam, small_sam, smooth_image


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace SAM's three model types by models of widths 32, 48 and 64."""
    for model_type, width in {"vit_b": 32, "vit_l": 48, "vit_h": 64}.items():
        monkeypatch.setitem(checkpoint_module.ENCODER_WIDTHS, model_type, width)
        build = partial(build_small_sam, width=width)
        monkeypatch.setitem(checkpoint_module.sam_model_registry, model_type, build)


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


def test_older_pytorch_format(tmp_path: Path) -> None:
    weights = small_sam(seed=1).state_dict()
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = SamGenerator.from_checkpoint("vit_b", tmp_path / "old.pth").sam.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def error_of(model_type: str, path: Path) -> str:
    with pytest.raises(CacheError) as error:
        SamGenerator.from_checkpoint(model_type, path)
    return str(error.value)


def test_wrong_model_type_and_missing_file(checkpoint: Path) -> None:
    assert f"{checkpoint} is a checkpoint of vit_b, not vit_h: use model type vit_b" in error_of("vit_h", checkpoint)
    assert "no model type 'vit_x'; choose one of vit_h, vit_l, vit_b, vit_t, lite" in error_of("vit_x", checkpoint)
    checkpoint.unlink()
    assert f"no SAM checkpoint at {checkpoint}; the weights are at https://" in error_of("vit_h", checkpoint)


class _Malicious:
    def __reduce__(self) -> Any:
        return print, ("run",)


_DAMAGED = "is not a SAM checkpoint, or damaged ("
_OTHER = "is not a SAM checkpoint; the weights of vit_b are at https://"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", _DAMAGED + "it is empty)", id="empty"),
        pytest.param(b"<html>404</html>", _DAMAGED, id="page"),
        pytest.param(b"PK\x03\x04 cut short", _DAMAGED, id="zip"),
        pytest.param(bytes(100), _DAMAGED, id="zeros"),
        pytest.param({"image_encoder.pos_embed": _Malicious()}, _DAMAGED, id="code"),
        pytest.param({"model": {}}, _OTHER, id="other names"),
        pytest.param([1, 2], _OTHER, id="list"),
        pytest.param({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 7)}, _OTHER, id="other width"),
    ],
)
def test_invalid_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    error = error_of("vit_b", path)
    assert f"{path} {message}" in error
    assert "mmap" not in error
    assert "run" not in capsys.readouterr().out, "code in the file was executed"


def test_incomplete_file(checkpoint: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert f"{checkpoint} {_DAMAGED}" in error_of("vit_b", checkpoint)
    del weights["mask_decoder.iou_token.weight"]
    torch.save(weights, checkpoint)
    message = error_of("vit_b", checkpoint)
    assert f"{checkpoint} does not match SAM's vit_b" in message
    assert "mask_decoder.iou_token.weight" in message
