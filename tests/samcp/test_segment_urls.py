"""samcp segment: images at URLs of an in-memory file system, and names of outputs."""

import io
import json
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_folder
from proposal_cache.generators.contours import ContourGenerator
from samcp.commands.segment import find_images
from tests.samcp.test_segment import run, save_model


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path / "cache"))
    return save_model(tmp_path)


def photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("query", ["", "?w=400", f"?signature={'a/b.c' * 100}"])
def test_picture_at_a_url_is_named_without_the_query(query: str, weights: Path, tmp_path: Path) -> None:
    url = f"memory://photos/cat.jpg{query}"
    fsspec.filesystem("memory").pipe(url, photo())
    run(url, "--weights", weights, "--output", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cat.jpg", "panoptic", "panoptic.json"}
    [image] = json.loads((tmp_path / "out" / "panoptic.json").read_text())["images"]
    assert (image["id"], image["file_name"]) == ("cat", "cat.jpg")


def test_keys_of_urls() -> None:
    urls = [
        "https://example.org/a/dog.webp?size=1/2",
        "s3://bucket/owl.png",
        "memory://fox.jpg",
        "file:///tmp/x%20y.jpg",
    ]
    assert [image.key for image in find_images(urls)] == ["dog", "owl", "fox", "x%20y"]


def test_picture_of_a_jfif_file_is_named_by_its_key(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.jfif").write_bytes(photo())
    run(tmp_path / "cat.jfif", "--weights", weights, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "cat.jpg").is_file()
    [image] = json.loads((tmp_path / "out" / "panoptic.json").read_text())["images"]
    assert (image["id"], image["file_name"]) == ("cat", "cat.jfif")


def test_picture_does_not_replace_an_image_at_a_file_url(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(photo())
    with pytest.raises(SystemExit, match=r"the picture would replace .*cat\.jpg; choose another folder"):
        run((tmp_path / "cat.jpg").as_uri(), "--output", tmp_path)


def test_url_is_downloaded_once(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("memory://photos/cat.jpg", photo())
    opened: Counter[str] = Counter()
    original = fsspec.open
    monkeypatch.setattr(fsspec, "open", lambda url, mode: (opened.update([url]), original(url, mode))[1])
    run("memory://photos/cat.jpg", "--weights", weights, "--output", tmp_path / "out")
    assert opened == {"memory://photos/cat.jpg": 1}


def test_unreadable_image_and_url_are_skipped(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        (photos / f"{name}.jpg").write_bytes(photo())
    generate(from_folder(photos), ContourGenerator(parts=8), tmp_path / "patches", "photos", progress=False)
    (photos / "a.jpg").write_bytes(b"damaged after its patches were made")
    run(photos, "--patches", tmp_path / "patches", "--weights", weights, "--output", tmp_path / "out")
    run(photos / "b.jpg", "memory://photos/gone.jpg", "--weights", weights, "--output", tmp_path / "urls")
    printed = capsys.readouterr().err
    assert f"skipped: {photos / 'a.jpg'} cannot be read as an image" in printed
    assert printed.count("skipped: memory://photos/gone.jpg cannot be read: it does not exist") == 1
    for out in ("out", "urls"):
        [image] = json.loads((tmp_path / out / "panoptic.json").read_text())["images"]
        assert image["id"] == "b"
