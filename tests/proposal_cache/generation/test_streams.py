"""Images from URLs and tar shards."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from proposal_cache import PatchCache
from proposal_cache.generation.engines.local import LocalEngine
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import ImageError, ImageFile, SourceError, with_boxes
from proposal_cache.generation.streams import TarShard, find_sources, read_sources
from tests.proposal_cache.generation.fakes import Halves, content, write_images
from tests.proposal_cache.tool import write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The images 00.png to 09.png, in a folder and in two tar shards with other members."""
    folder = write_images(tmp_path / "images")
    for number, mode in enumerate(("w", "w:gz")):
        members = {"._00.png": b"a resource fork"}
        for path in sorted(folder.iterdir())[5 * number : 5 * number + 5]:
            members |= {path.name: path.read_bytes(), f"{path.stem}.json": b"{}"}
            members[f"{path.stem}.seg.png"] = b"no image of the sample"
        write_tar(tmp_path / f"{number:03}.tar", members, mode)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    address = ("127.0.0.1", 0)
    with http.server.ThreadingHTTPServer(address, functools.partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run(location: str, path: Path, **options: LocalEngine) -> dict:
    generate(find_sources(location), Halves(), path, "set", progress=False, **options)
    return content(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_all_sources_give_the_same_cache(folder: Path, tmp_path: Path, server: str, workers: int) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), f"/{tmp_path.name}", recursive=True)
    locations = [f"{tmp_path}/{{000..001}}.tar", f"{tmp_path}/*.tar", f"file://{folder}", f"{server}/{{000..001}}.tar"]
    locations += [f"{server}/images"] + ([] if workers else [f"memory://{tmp_path.name}"])  # of one process only
    expected = run(str(folder), tmp_path / "cache")
    for number, location in enumerate(locations):
        assert run(location, tmp_path / f"cache {number}", engine=LocalEngine(workers=workers)) == expected, location


def test_resume_skips_finished_images_of_a_tar(folder: Path, tmp_path: Path) -> None:
    first, second = (TarShard(str(tmp_path / f"{number:03}.tar")) for number in range(2))
    generate([first], Halves(), tmp_path / "cache", "set", progress=False)
    generator = Halves()
    generate([first, second], generator, tmp_path / "cache", "set", progress=False)
    assert generator.calls == 5
    assert len(PatchCache(tmp_path / "cache")) == 10


def test_damaged_tar_is_reported_after_all_others(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "000.tar"
    damaged.write_bytes(damaged.read_bytes()[:3500])
    with pytest.raises(SourceError, match=r"1 images or tar shards were not read, .*000\.tar cannot be read"):
        run(f"{tmp_path}/{{000..001}}.tar", tmp_path / "cache")
    assert "09" in PatchCache(tmp_path / "cache")


def test_tar_without_images_is_reported_after_all_others(folder: Path, tmp_path: Path) -> None:
    """The suffix of IMG.2020.png is .2020.png."""
    write_tar(tmp_path / "002.tar", {"IMG.2020.png": (folder / "01.png").read_bytes(), "read.me": b""})
    with pytest.raises(SourceError, match=r"1 images or tar shards were not read, .*002\.tar has no images .supported"):
        run(f"{tmp_path}/{{002,000,001}}.tar", tmp_path / "cache")
    assert len(PatchCache(tmp_path / "cache")) == 10


def test_members_without_a_valid_key(folder: Path, tmp_path: Path) -> None:
    image = (folder / "01.png").read_bytes()
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", {"./sub/a.png": image, "../b.png": image})
    found = list(read_sources([TarShard(str(tmp_path / f"{number}.tar")) for number in range(2)], lambda key: False))
    assert isinstance(found[0], ImageFile)
    assert found[0].key == "sub/a"
    assert found[0].read().shape == (8, 16, 3)
    assert "cannot be a key" in str(found[1])
    assert "1.tar/sub/a.png: another image has the key 'sub/a'" in str(found[2])


def test_boxes_of_images_at_urls(folder: Path, tmp_path: Path, server: str) -> None:
    boxes, images = tmp_path / "boxes.json", find_sources(f"{server}/images")
    boxes.write_text('{"03": [[1, 2, 15, 7]]}')
    assert with_boxes(images, boxes)[0][3].boxes == ((1, 2, 15, 7),)
    boxes.write_text('{"03": [[16, 2, 17, 7]]}')
    with pytest.raises(SourceError, match=r"is outside http.*/03\.png of 16 x 8 pixels"):
        with_boxes(images, boxes)


def test_locations_without_images(folder: Path, tmp_path: Path, server: str) -> None:
    for location, error in {
        f"{tmp_path}/x*.tar": "no tar files match",
        f"{server}/none": "cannot be listed|no images in",
        "nothing://x": "nothing://x cannot be listed: Protocol not known",
        "s3://bucket/x": "s3fs",
        f"{tmp_path}/absent": "is not a folder",
        "a{0.tar": r"a\{0\.tar: Unbalanced braces",
    }.items():
        with pytest.raises(SourceError, match=error):
            find_sources(location)
    with pytest.raises(SourceError, match=r"absent\.tar cannot be read"):
        list(TarShard(f"{tmp_path}/absent.tar").members({".png"}))
    with pytest.raises(ImageError, match=r"absent\.png cannot be read"):
        ImageFile("absent", f"{server}/absent.png").read()


def test_braces_name_several_tar_files() -> None:
    expected = [TarShard(f"a{number}b{letter}.tar") for number in ("09", "10", "11") for letter in "xy"]
    assert find_sources("a{09..11}b{x,y}.tar") == expected
