"""Commands of proposal-cache."""

import re
import subprocess
import sys
import tarfile
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from proposal_cache import PatchCache, Patches
from proposal_cache.generation import options
from proposal_cache.generation.engines.local import LocalEngine
from proposal_cache.generation.parts import Part
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_folder
from proposal_cache.generators.contours import ContourGenerator
from proposal_cache.visualize import draw_patches
from tests.proposal_cache.generation.fakes import content, write_images
from tests.proposal_cache.tool import SIZE, error_of, halves, run, write_cache

COMMANDS = ("generate", "finalize", "info", "verify", "show", "merge", "import", "export")


def test_help_lists_the_commands_and_imports_no_engine() -> None:
    code = (
        "import sys; from proposal_cache.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'ray', 'fsspec', 'scipy', 'cv2'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"    {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"example:\n  proposal-cache {command}" in capsys.readouterr().out


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", 3)


def test_generate_in_parts_and_finalize(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("generate", "--generator", "contours", "--images", images, "--output", tmp_path / "cache")
    assert run(*command, "--part", "1/2") == 0
    assert "part 1/2 is finished, others are not" in capsys.readouterr().out
    assert "was never finished" in error_of("info", tmp_path / "cache")
    assert run("finalize", tmp_path / "cache") == 0
    assert "warning: these parts are not finished: 0/2" in capsys.readouterr().err
    assert list(PatchCache(tmp_path / "cache")) == ["01"]
    assert run(*command, "--part", "0/2") == 0
    assert ": 3 images, " in capsys.readouterr().out
    assert PatchCache(tmp_path / "cache").manifest.dataset == "photos"
    assert "I/N, such as 0/8" in error_of(*command, "--part", "2")


def test_generate_from_tar_files(images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00.tar", "w") as tar:
        tar.add(images, "")
    command = ("generate", "--generator", "contours", "--output", tmp_path / "cache")
    assert run(*command, "--images", tmp_path / "{00..00}.tar", "--name", "photos") == 0
    assert list(PatchCache(tmp_path / "cache")) == ["00", "01", "02"]
    (tmp_path / "boxes.json").write_text("{}")
    boxes = ("--boxes", tmp_path / "boxes.json")
    assert "--boxes needs a folder" in error_of(*command, "--images", tmp_path / "00.tar", *boxes)


def test_options_of_the_ray_engine(images: Path, tmp_path: Path) -> None:
    command = ("generate", "--generator", "contours", "--images", images, "--output", tmp_path / "c", "--engine", "ray")
    assert "use --part with --engine local" in error_of(*command, "--part", "0/2")
    assert "with --engine ray use --ray-actors" in error_of(*command, "--workers", 2)
    for actors in ("0-3", "8-4"):
        assert run(*command, "--ray-actors", actors) == 2


def test_options_without_effect_are_errors(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("generate", "--images", images, "--generator", "contours", "--output", tmp_path / "cache")
    assert "--ray-address is for --engine ray" in error_of(*command, "--ray-address", "auto")
    assert "--ray-actors is for --engine ray" in error_of(*command, "--ray-actors", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for device in ("cuda", "cuda:0"):
        assert "--workers is for CPUs" in error_of(*command, "--workers", 2, "--device", device)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, ["cuda:0", "cuda:1", "cuda:2"]),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, ["cuda:2"]),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, ["cuda:0", "cuda:1", "cuda:2"]),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, ["cuda:1"]),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2,1"}, ["cuda:0"]),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"},
            ["cuda:0", "cuda:1", "cuda:2"],
        ),
        ({"SLURM_LOCALID": "0"}, ["cuda:0", "cuda:1", "cuda:2"]),
    ],
)
def test_a_process_uses_one_gpu_if_there_are_others_on_its_machine(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("os.environ", environment)
    assert options._devices("cuda") == devices


def test_workers_on_a_numbered_cpu(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proposal_cache.generation.options.LocalEngine", lambda workers, **_: LocalEngine())
    command = ("generate", "--images", images, "--generator", "contours", "--output", tmp_path / "cache")
    assert run(*command, "--workers", 2, "--device", "cpu:0") == 0


def test_generate_as_a_library_or_a_command(images: Path, tmp_path: Path) -> None:
    assert run("generate", "--generator", "contours", "--images", images, "--output", tmp_path / "cache") == 0
    assert generate(from_folder(images), ContourGenerator(), tmp_path / "cache", "photos", part=Part(), progress=False)


def test_info(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", cache) == 0
    text = capsys.readouterr().out
    for part in ("toy", '"left-right"', "2, first: a, sub/b", "4, 2.0 per image", "100.0 %", "bad: bad.png: the file"):
        assert part in text
    assert str(cache / "absent") in error_of("info", cache / "absent")


def test_verify_names_the_damaged_shard_and_the_repair(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_show_reports_errors(cache: Path, tmp_path: Path) -> None:
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
    more = write_cache(tmp_path / "more", {"name": "left-right", "version": 3}, {"c": halves(3)})
    assert run("merge", cache, more, "--output", tmp_path / "all") == 0
    merged = PatchCache(tmp_path / "all")
    assert list(merged) == ["a", "c", "sub/b"]
    assert len(merged.manifest.generators) == 1
    assert merged["a"].predicted_iou.tolist() == [0.5, 0.75]
    assert merged.manifest.failures == {"bad": "bad.png: the file is empty"}


def test_merge_of_the_same_image_by_the_same_generator_writes_nothing(cache: Path, tmp_path: Path) -> None:
    message = error_of("merge", cache, cache, "--output", tmp_path / "twice")
    assert "both have patches of 'a' by the same generator" in message
    assert not (tmp_path / "twice").exists()


def test_merge_again_after_an_input_has_grown_is_refused(cache: Path, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other", {"name": "other"}, {"a": halves(8)})
    command = ("merge", cache, other, "--output", tmp_path / "both")
    assert run(*command) == run(*command) == 0
    write_cache(other, {"name": "other"}, {"sub/b": halves(8)})
    assert "it was not merged from these caches, or they have changed since" in error_of(*command)
    assert PatchCache(tmp_path / "both")["sub/b"].source.tolist() == [0, 0]


def test_merge_into_another_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    one, two = (
        write_cache(tmp_path / name, {"name": "left-right", "version": 3}, {name: halves(3)}) for name in ("c", "d")
    )
    before = content(cache)
    assert "it was not merged from these caches" in error_of("merge", one, two, "--output", cache)
    assert content(cache) == before


def test_merge_of_other_generators_keeps_them_apart(cache: Path, tmp_path: Path) -> None:
    images, failures = {"a": halves(8), "bad": halves(8)}, [("sub/b", "too dark")]
    other = write_cache(tmp_path / "other", {"name": "other"}, images, failures=failures, dataset="toy2")
    command = ("merge", cache, other, "--output", tmp_path / "both")
    assert "toy, toy2" in error_of(*command)
    assert run(*command, "--dataset", "toy") == 0
    both = PatchCache(tmp_path / "both")
    assert [g["name"] for g in both.manifest.generators] == ["left-right", "other"]
    assert both["a"].source.tolist() == [0, 0, 1, 1]
    assert both["a"].areas.tolist() == [60, 180, 96, 144]
    assert both["sub/b"].source.tolist() == [0, 0]
    assert both.manifest.failures == {}  # of each, the other cache has the patches


@pytest.mark.parametrize(
    ("work", "command", "message"),
    [
        ("verify", "verify cache", "to start again"),
        ("export_results", "export cache --output out.json", "to start again"),
        ("merge", "merge cache --output new", "to continue"),
        ("import_results", "import a.json --annotations b.json --output new", "to continue"),
        ("import_results", "import a.json --annotations b.json --add-to cache --output new", "to continue"),
    ],
)
def test_interrupted(cache: Path, capsys: pytest.CaptureFixture[str], work: str, command: str, message: str) -> None:
    with chdir(cache.parent), patch(f"proposal_cache.cli.{work}", side_effect=KeyboardInterrupt):
        assert run(*command.split()) == 130
    assert re.match(f"interrupted: .*{message}", capsys.readouterr().err)
