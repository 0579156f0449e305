"""python -m proposal_cache, command by command."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from proposal_cache import CacheWriter, PatchCache, Patches, cli
from proposal_cache.visualize import draw_patches
from tests.proposal_cache.tool import SIZE, error_of, halves, run


def test_as_a_module_its_help_lists_the_commands() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "proposal_cache", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("info", "verify", "show", "merge", "import", "export"):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["info", "verify", "show", "merge", "import", "export"])
def test_help_of_each_command_gives_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"example:\n  python -m proposal_cache {command}" in capsys.readouterr().out


def test_info(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", cache) == 0
    text = capsys.readouterr().out
    for part in ("toy", '"left-right"', "2, first: a, sub/b", "4, 2.0 per image", "100.0 %", "bad: bad.png: the file"):
        assert part in text


def test_no_cache_there(tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in error_of("info", tmp_path / "absent")


def test_verify_names_the_bad_shard_and_what_to_do(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", cache) == 0
    assert "3 files read, 0 bad" in capsys.readouterr().out
    shard = next(cache.glob("shard-*.h5"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run("verify", cache) == 1
    text = capsys.readouterr().out
    assert f"BAD {shard.name}" in text
    assert "delete it and run the generator again" in text


def test_show_draws_on_the_image(cache: Path, tmp_path: Path) -> None:
    Image.new("RGB", SIZE[::-1], (0, 0, 250)).save(tmp_path / "a.png")
    assert run("show", cache, "a", "--image", tmp_path / "a.png", "--output", tmp_path / "out.png") == 0
    picture = np.asarray(Image.open(tmp_path / "out.png"))
    assert picture.shape == (*SIZE, 3)
    assert (picture[0, 0] != picture[0, 10]).any()


def test_show_says_what_is_wrong(cache: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out.png")
    assert "no patches of 'x'" in error_of("show", cache, "x", *output)
    Image.new("RGB", (3, 3)).save(tmp_path / "small.png")
    assert "12 x 20 pixels" in error_of("show", cache, "a", "--image", tmp_path / "small.png", *output)
    assert "out.what cannot be written" in error_of("show", cache, "a", "--output", tmp_path / "out.what")


def test_picture_keeps_small_patches_in_front_and_uncovered_pixels_as_they_are() -> None:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 4:7, 4:7] = True
    masks[1, :, :15] = True
    image = np.full((*SIZE, 3), 10, np.uint8)
    picture = draw_patches(Patches.from_masks(masks), image)
    assert (picture[:, 16:] == 10).all()
    assert (picture[5, 5] != picture[5, 2]).any()
    assert (picture[4, 4] == 255).all()  # outline
    assert (draw_patches(Patches.empty(*SIZE)) == 0).all()


def test_merge_of_other_images(cache: Path, tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "more", {"name": "left-right", "version": 3}, "toy") as writer:
        writer.add("c", halves(3))
    assert run("merge", cache, tmp_path / "more", "--output", tmp_path / "all") == 0
    merged = PatchCache(tmp_path / "all")
    assert list(merged) == ["a", "c", "sub/b"]
    assert len(merged.manifest.generators) == 1
    assert merged["a"].predicted_iou.tolist() == [0.5, 0.75]
    assert merged.manifest.failures == {"bad": "bad.png: the file is empty"}


def test_merge_of_the_same_image_by_the_same_generator_writes_nothing(cache: Path, tmp_path: Path) -> None:
    assert "both have patches of 'a' by the same generator" in error_of(
        "merge", cache, cache, "--output", tmp_path / "twice"
    )
    assert not (tmp_path / "twice").exists()


def test_merge_again_after_an_input_has_grown_is_refused(cache: Path, tmp_path: Path) -> None:
    other = {"path": tmp_path / "other", "generator": {"name": "other"}, "dataset": "toy"}
    with CacheWriter(**other) as writer:
        writer.add("a", halves(8))
    command = ("merge", cache, tmp_path / "other", "--output", tmp_path / "both")
    assert run(*command) == run(*command) == 0
    with CacheWriter(**other) as writer:
        writer.add("sub/b", halves(8))
    assert "the caches it was merged from have changed since" in error_of(*command)
    assert PatchCache(tmp_path / "both")["sub/b"].source.tolist() == [0, 0]


def test_merge_mends_failures(cache: Path, tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "other", {"name": "other"}, "toy") as writer:
        writer.add("bad", halves(8))
        writer.add_failure("a", "too dark")
    assert run("merge", cache, tmp_path / "other", "--output", tmp_path / "both") == 0
    assert PatchCache(tmp_path / "both").manifest.failures == {}


def test_merge_of_other_generators_keeps_them_apart(cache: Path, tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "other", {"name": "other"}, "toy2") as writer:
        writer.add("a", halves(8))
    command = ("merge", cache, tmp_path / "other", "--output", tmp_path / "both")
    assert "toy, toy2" in error_of(*command)
    assert run(*command, "--dataset", "toy") == 0
    both = PatchCache(tmp_path / "both")
    assert [g["name"] for g in both.manifest.generators] == ["left-right", "other"]
    assert both["a"].source.tolist() == [0, 0, 1, 1]
    assert both["a"].areas.tolist() == [60, 180, 96, 144]
    assert both["sub/b"].source.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("command", "work", "message"),
    [
        ("verify cache", "verify", "it starts from the beginning"),
        ("export cache --output out.json", "export_results", "it starts from the beginning"),
        ("merge cache --output new", "merge", "it continues where it was"),
        ("import a.json --annotations b.json --output new", "import_results", "it continues where it was"),
    ],
)
def test_interrupted(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    work: str,
    message: str,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(cache.parent)
    monkeypatch.setattr(cli, work, interrupt)
    assert run(*command.split()) == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted: ")
    assert message in error
