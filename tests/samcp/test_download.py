"""Download of model files."""

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from samcp import download
from samcp.download import fetch
from samcp.errors import CheckpointError
from samcp.predictor import Predictor

CONTENT = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    """Sends CONTENT; of /cut.pth only a half, /chunked.pth without its last chunk, and nothing of /silent.pth."""

    def do_GET(self) -> None:
        if self.path == "/silent.pth":
            time.sleep(2)
            return
        self.send_response(200)
        if self.path == "/chunked.pth":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ff\r\nno more")
            return
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/cut.pth" else CONTENT)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
def test_file_is_downloaded_once(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(f"{server}/model.pth?version=2")
    assert (path.name, path.read_bytes()) == ("model.pth", CONTENT)
    assert f"{path}\nsha256 {hashlib.sha256(CONTENT).hexdigest()}\n" in capsys.readouterr().err
    assert fetch(f"{server}/model.pth?version=2") == path
    assert not capsys.readouterr().err
    assert list(path.parent.iterdir()) == [path]


def test_truncated_file_is_an_error_and_not_kept(server: str, cache: Path) -> None:
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"cut\.pth: cannot be downloaded .only 128000 of 256000 bytes arr"):
            fetch(f"{server}/cut.pth")
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("cache")
def test_invalid_answers_and_urls_are_errors(server: str) -> None:
    for url in (f"{server}/chunked.pth", "http://example.org:port/a.pth", f"{server}/"):
        with pytest.raises(CheckpointError, match="check the URL, or name a local file"):
            fetch(url)


@pytest.mark.usefixtures("cache")
def test_server_that_does_not_answer_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PATIENCE", 0.2)
    with pytest.raises(CheckpointError, match=r"silent.pth: cannot be downloaded \(timed out\)"):
        fetch(f"{server}/silent.pth")


def test_answer_that_is_no_model_is_named_for_deletion(server: str, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="; to download http.*/model.safetensors again, delete the file") as error:
        Predictor.from_pretrained(f"{server}/model.safetensors", device="cpu")
    [file] = [path for path in cache.rglob("*") if path.is_file()]
    assert str(file) in str(error.value)


def test_folder_that_cannot_be_created_is_an_error(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot be downloaded .*models.* cannot be created: Not a directory"):
        fetch((cache.parent / "model.pth").as_uri())
