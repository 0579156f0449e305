"""Commands on a full disk and after Ctrl-C: each file is whole or absent, and the same command again completes them."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from proposal_cache import PatchCache
from proposal_cache import cli as proposal_cache
from samcp import cli
from samcp.export import ModelFile
from tests.conftest import Synthetic
from tests.faults.conditions import disk_full, files_in, intercept, interrupt
from tests.proposal_cache.generation.fakes import content, write_images
from tests.samcp.test_segment import save_model

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import prepare_camvid
import prepare_miniature
import prepare_synthetic

Command = Callable[[Path], object]  # writes into a folder


def _script(main: Callable[[], None], *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *map(str, arguments)])
        main()


def _segment(synthetic: Synthetic, root: Path) -> Command:
    where = ["segment", synthetic.folder / "val", "--patches", synthetic.val_patches, "--weights", save_model(root)]
    return lambda output: cli.main([*map(str, where), "--output", str(output)])


def _export(format_suffix: str, synthetic: Synthetic, root: Path) -> Command:
    model = save_model(root)
    return lambda output: cli.main(["export", str(model), str(output / f"model{format_suffix}")])


def _prepare_synthetic(synthetic: Synthetic, root: Path) -> Command:
    options = ("--train", 2, "--val", 2, "--size", 48, 64)
    return lambda output: _script(prepare_synthetic.main, "--output", output, *options)


def _prepare_miniature(synthetic: Synthetic, root: Path) -> Command:
    return lambda output: _script(prepare_miniature.main, "--output", output, "--train", 1, "--val", 1)


def _prepare_camvid(synthetic: Synthetic, root: Path) -> Command:
    """Return a conversion of a release, which the output has links to."""
    random = np.random.default_rng(0)
    parts = {"train": (40, 50, 3), "trainannot": (40, 50), "val": (40, 50, 3), "valannot": (40, 50)}
    for part, shape in parts.items():
        (root / part).mkdir()
        Image.fromarray(random.integers(0, 12, shape, np.uint8)).save(root / part / "1.png")

    def convert(output: Path) -> None:
        output.mkdir(exist_ok=True)
        for part in parts:
            if not (output / part).exists():
                (output / part).symlink_to(root / part)
        _script(prepare_camvid.main, "--folder", output)

    return convert


COMMANDS: dict[str, Callable[[Synthetic, Path], Command]] = {
    "segment": _segment,
    "export of a model file": partial(_export, ".safetensors"),
    "prepare_synthetic": _prepare_synthetic,
    "prepare_miniature": _prepare_miniature,
    "prepare_camvid": _prepare_camvid,
}
SLOW: dict[str, Callable[[Synthetic, Path], Command]] = {
    "export for torch.export": partial(_export, ".pt2"),
    "export to ONNX": partial(_export, ".onnx"),
}
ALL = [*COMMANDS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture
def command(request: pytest.FixtureRequest, synthetic: Synthetic, tmp_path: Path) -> Command:
    make = {**COMMANDS, **SLOW}[request.param]
    (tmp_path / "model").mkdir()
    return make(synthetic, tmp_path / "model")


@pytest.fixture
def undisturbed(command: Command, tmp_path: Path) -> dict[str, bytes]:
    """Return the files of a run without a fault."""
    command(tmp_path / "undisturbed")
    return files_in(tmp_path / "undisturbed")


# Of formats in which two exports of a model differ, by names or the order of metadata; they fail for incomplete files.
READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": ModelFile.load,
    ".pt2": torch.export.load,
    ".onnx": lambda path: onnx.checker.check_model(onnx.load(path)),
}


def assert_whole_or_absent(output: Path, undisturbed: dict[str, bytes]) -> None:
    for name, data in (files_in(output) if output.exists() else {}).items():
        assert name in undisturbed, "a temporary file is left"
        if Path(name).suffix in READERS:
            READERS[Path(name).suffix](output / name)
        else:
            assert data == undisturbed[name], f"{name} is incomplete"


@pytest.mark.parametrize("command", ALL, indirect=True)
def test_ctrl_c(
    command: Command, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt while the first file is written, and while a later one is renamed."""
    for step in (1, 5)[: len(undisturbed)]:
        output = tmp_path / f"interrupted {step}"
        with monkeypatch.context() as patch:
            intercept(patch, [(os, "fsync"), (os, "replace")], step, interrupt)
            with pytest.raises(SystemExit) as stop:
                command(output)
        assert str(stop.value).startswith("interrupted")
        assert_whole_or_absent(output, undisturbed)
        command(output)
        assert files_in(output).keys() == undisturbed.keys()
        assert_whole_or_absent(output, undisturbed)


@pytest.mark.parametrize("command", ALL, indirect=True)
def test_full_disk(command: Command, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    largest = max(map(len, undisturbed.values()))  # of which two exports differ by some bytes
    output = tmp_path / "full"
    with pytest.raises(SystemExit) as stop, disk_full(largest - 100):
        command(output)
    assert str(stop.value).startswith(f"error: {output}")
    assert "cannot be written: File too large; what was complete before is kept" in str(stop.value)
    assert_whole_or_absent(output, undisturbed)
    command(output)
    assert files_in(output).keys() == undisturbed.keys()
    assert_whole_or_absent(output, undisturbed)


class TestGenerate:
    """`proposal-cache generate`, whose shards depend on where it stopped; the content of the cache does not."""

    @pytest.fixture
    def generate(self, tmp_path: Path) -> Callable[[str], Any]:
        write_images(tmp_path / "images", 6)
        command = ["generate", "--images", str(tmp_path / "images"), "--generator", "contours", "--shard-size", "2"]

        def run(name: str) -> Any:
            with pytest.raises(SystemExit) as end:
                proposal_cache.main([*command, "--output", str(tmp_path / name)])
            return end.value.code

        return run

    def test_ctrl_c(
        self,
        generate: Callable[[str], Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert generate("undisturbed") == 0
        for step in range(0, 12, 2):
            with monkeypatch.context() as patch:
                intercept(patch, [(os, "fsync"), (os, "replace")], step, interrupt)
                assert generate(f"{step}") == 130
            assert "interrupted: completed work is kept; repeat the same command" in capsys.readouterr().err
            assert not list((tmp_path / f"{step}").glob("*.tmp"))
            assert generate(f"{step}") == 0
            assert content(tmp_path / f"{step}") == content(tmp_path / "undisturbed")

    def test_full_disk(self, generate: Callable[[str], Any], tmp_path: Path) -> None:
        assert generate("undisturbed") == 0
        with disk_full():
            message = generate("full")
        assert message.startswith(f"error: {tmp_path / 'full'}/shard-r000-00000.h5 cannot be written: File too large")
        assert not list((tmp_path / "full").glob("*.tmp"))
        assert not list((tmp_path / "full").glob("shard-*"))
        assert generate("full") == 0
        assert content(tmp_path / "full") == content(tmp_path / "undisturbed")

    def test_second_generator_on_the_same_output(
        self, generate: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It ends at once, and names the process that writes; the first one is not disturbed."""
        fork = multiprocessing.get_context("fork")
        running, may_continue = fork.Event(), fork.Event()

        def wait() -> None:
            running.set()
            may_continue.wait()

        def first() -> None:
            intercept(monkeypatch, [(os, "replace")], 1, wait)  # before the second shard
            os._exit(generate("cache"))

        process = fork.Process(target=first)
        process.start()
        running.wait()
        try:
            message = generate("cache")
        finally:
            may_continue.set()
            process.join()
        assert message.startswith(f"error: {tmp_path / 'cache'} is being written by process {process.pid} on ")
        assert message.endswith("wait for it to end, or write to another directory")
        assert process.exitcode == 0
        assert generate("undisturbed") == 0
        assert content(tmp_path / "cache") == content(tmp_path / "undisturbed")
        assert len(PatchCache(tmp_path / "cache")) == 6
