"""Import of SA-1B."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proposal_cache import PatchCache, Patches, rle
from proposal_cache.generation.sources import SourceError
from proposal_cache.interchange.coco import InterchangeError
from proposal_cache.interchange.sa1b import import_sa1b, read_sa1b
from tests.proposal_cache.tool import SIZE, error_of, halves, run, write_tar

MASK = halves(5).rles[0]


def annotation(counts: bytes, **changes: Any) -> dict[str, Any]:
    """One mask as SA-1B stores it."""
    return {
        "segmentation": rle.to_json(counts, *SIZE),
        "bbox": [0, 0, 5, 12],
        "area": 60,
        "predicted_iou": 0.75,
        "stability_score": 0.5,
        "crop_box": [0, 0, SIZE[1], SIZE[0]],
        "point_coords": [[2.0, 3.0]],
        "id": 1,
    } | changes


def sample(patches: Patches) -> dict[str, Any]:
    image = {"image_id": 7, "height": SIZE[0], "width": SIZE[1], "file_name": "sa_7.jpg"}
    return {"image": image, "annotations": [annotation(counts) for counts in patches.rles]}


def test_folder_of_json_files(tmp_path: Path) -> None:
    source = tmp_path / "sa1b"
    (source / "sub").mkdir(parents=True)
    (source / "sa_7.json").write_text(json.dumps(sample(halves(5))))
    (source / "sub/sa_8.json").write_text(json.dumps(sample(halves(0))))  # whose first mask is empty
    (source / "sa_9.json").write_text("{")
    assert run("import", source, "--format", "sa1b", "--output", tmp_path / "cache") == 0
    cache = PatchCache(tmp_path / "cache")
    assert list(cache) == ["sa_7", "sub/sa_8"]
    assert cache["sa_7"].rles == halves(5).rles
    assert cache["sa_7"].predicted_iou.tolist() == [0.75, 0.75]
    assert cache["sa_7"].stability_score.tolist() == [0.5, 0.5]
    assert len(cache["sub/sa_8"]) == 1
    assert "not a json of SA-1B" in cache.manifest.failures["sa_9"]
    assert cache.manifest.generators[0]["name"] == "sa1b"


def test_files_that_cannot_be_read_are_failures(tmp_path: Path) -> None:
    source = tmp_path / "sa1b"
    (source / "folder.json").mkdir(parents=True)
    (source / "sa_7.json").write_text(json.dumps(sample(halves(5))))
    (source / "dangling.json").symlink_to(tmp_path / "absent")
    os.mkfifo(source / "pipe.json")
    import_sa1b(source, tmp_path / "cache", "sa1b")
    cache = PatchCache(tmp_path / "cache")
    assert list(cache) == ["sa_7"]
    assert {key: error.partition("cannot be read: ")[2] for key, error in cache.manifest.failures.items()} == {
        "dangling": "No such file or directory",
        "pipe": "it is not a file",
    }


def test_imported_files_are_not_read_again(tmp_path: Path) -> None:
    source = tmp_path / "sa1b"
    source.mkdir()
    for name in ("sa_7", "sa_8"):
        file = source / f"{name}.json"
        file.write_text(json.dumps(sample(halves(5))))
        import_sa1b(source, tmp_path / "cache", "sa1b")
        file.unlink()
        file.symlink_to(tmp_path / "absent")
    assert list(PatchCache(tmp_path / "cache")) == ["sa_7", "sa_8"]
    assert not PatchCache(tmp_path / "cache").manifest.failures


def test_tar_files_of_the_release(tmp_path: Path) -> None:
    for number in range(2):
        content = json.dumps(sample(halves(5))).encode()
        members = dict.fromkeys((f"./sa_{number}.jpg", f"./sa_{number}.json"), content)
        write_tar(tmp_path / f"sa_00000{number}.tar", members)
    import_sa1b(f"{tmp_path}/sa_{{000000..000001}}.tar", tmp_path / "cache", "sa1b")
    assert list(PatchCache(tmp_path / "cache")) == ["sa_0", "sa_1"]


def test_other_tar_files_are_imported_if_one_is_damaged(tmp_path: Path) -> None:
    for number in range(3):
        members = {f"./sa_{number}.json": json.dumps(sample(halves(5))).encode()}
        write_tar(tmp_path / f"{number}.tar", members | {"../up.json": b"{}"} if number == 2 else members)
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:700])
    with pytest.raises(
        SourceError, match=r"2 tar files or members were not read, the first one: .*1\.tar cannot be read"
    ):
        import_sa1b(f"{tmp_path}/{{0..2}}.tar", tmp_path / "cache", "sa1b")
    assert list(PatchCache(tmp_path / "cache")) == ["sa_0", "sa_2"]


def test_images_that_cannot_be_stored_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "sa1b"
    source.mkdir()
    for name, count in (("sa_7", 5), ("sa_8", 0)):
        (source / f"{name}.json").write_text(json.dumps(sample(halves(count))))
    monkeypatch.setattr("proposal_cache.store.format.MAX_PATCHES", 1)
    import_sa1b(source, tmp_path / "cache", "sa1b")
    cache = PatchCache(tmp_path / "cache")
    assert list(cache) == ["sa_8"]
    assert "sa_7" in cache.manifest.failures


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"image": {}}, "KeyError"),
        ({"image": {"height": 12, "width": True}}, "image size 12 x True is invalid"),
        ({"annotations": [annotation(b"xxx")]}, "not a json of SA-1B"),
        ({"annotations": [annotation(MASK, predicted_iou="good")]}, "predicted_iou 'good' is not a finite"),
        ({"annotations": [annotation(MASK, segmentation={"size": [1, 1], "counts": "1"})]}, "has size"),
    ],
)
def test_invalid_content(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(InterchangeError, match=error):
        read_sa1b(json.dumps(sample(halves(5)) | changes).encode())
    assert len(read_sa1b(json.dumps(sample(Patches.from_masks(np.zeros((0, *SIZE), bool)))).encode())) == 0


def test_location_without_json_files(tmp_path: Path) -> None:
    assert "no json files in" in error_of("import", tmp_path, "--format", "sa1b", "--output", tmp_path / "cache")
