"""Commands and Python examples of README.md and docs run as they are written.

That of docs/export.md runs in tests/samcp/modeling/test_tensor_network.py.
"""

import argparse
import runpy
import shlex
import subprocess
import sys

import pytest
from PIL import Image

import proposal_cache.cli
import samcp.cli
from samcp.config import load_config
from tests.documentation_data import make_checkout
from tests.documented_commands import ROOT, blocks, recorded, run

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
GENERATE = "python scripts/generate_sam_patches.py --dataset"
TRAIN = "python projects/samcp/train_net.py --config-file configs"

# First words of the commands that are only parsed, by the reason.
NOT_RUN = {
    "SAM's weights and a GPU": [
        f"{GENERATE} coco_2017_train_panoptic --model-type vit_h",
        f"{GENERATE} coco_2017_train_panoptic --checkpoint",
        f"{GENERATE} coco_2017_val_panoptic --checkpoint",
        f"{GENERATE} ade20k_panoptic_train --checkpoint",
        f"{GENERATE} ade20k_panoptic_val --checkpoint",
        f"{GENERATE} ade20k_panoptic_val --generator sam2",
        f"{GENERATE} cityscapes_fine_panoptic_train --crops 2",
        f"{GENERATE} cityscapes_fine_panoptic_val --crops 2",
        f"{GENERATE} pascal_part_general_train",
        f"{GENERATE} pascal_part_general_val",
        f"{GENERATE} cod10k_test",
        "python scripts/generate_sam_patches.py --register beach/beach.yaml --dataset beach_train",
        "python scripts/generate_sam_patches.py --register beach/beach.yaml --dataset beach_val",
        "proposal-cache generate --images photos",
    ],
    "the weights of SAM and CLIP": ["samcp segment photos --checkpoint"],
    "eight GPUs": [
        f"{TRAIN}/coco/panoptic/samcp_R50_12ep.yaml --num-gpus 8",
        f"{TRAIN}/ade20k/panoptic/samcp_R50_160k.yaml --num-gpus 8",
        f"{TRAIN}/pascal_part/samcp_R50_parts.yaml --num-gpus 8",
        f"{TRAIN}/pascal_part/samcp_R50_general.yaml --num-gpus 8",
    ],
    "CLIP's weights, and a model trained on COCO": [f"{TRAIN}/open_vocabulary/coco_to_cod10k.yaml --eval-only"],
    "a Ray cluster, Slurm, torchrun or several machines (tests/proposal_cache/generation)": [
        "proposal-cache generate --images s3://bucket",
        "proposal-cache generate --part 3/8",
        "proposal-cache finalize /shared/patches",
        "sbatch",
        "torchrun",
    ],
    "a download (tests/proposal_cache/interchange)": [
        "proposal-cache import maskdino_train2017.json",
        "proposal-cache import maskdino_val2017.json",
        "proposal-cache import sa_{000000..000999}.tar",
    ],
    "it would change this environment": ["pip install", "make install"],
    "another test runs it (test_demo.py), or it runs this test": ["make demo", "make test"],
    "the model of make demo (tests/scripts/test_visualize.py, test_evaluate_patches.py, test_measure_time.py)": [
        "python scripts/visualize_panels.py",
        "python scripts/visualize_tsne.py",
        "python scripts/evaluate_patches.py --dataset synthetic_val",
        "python scripts/measure_time.py",
    ],
    "minutes of measuring or training (tests/scripts)": [
        "python scripts/benchmark.py",
        "python scripts/overfit.py",
    ],
    "hours of training (tests/samcp/small_sam)": ["python scripts/train_small_sam.py"],
    "a trained model, and a minute of export (tests/samcp/modeling/test_tensor_network.py)": ["samcp export"],
}
NAMES = [name for names in NOT_RUN.values() for name in names]
# In this order, since a page uses data and patches of those before.
PAGES_OF_TRAININGS = ["README.md", "docs/datasets.md", "docs/benchmarks.md"]


class Parsed(BaseException):
    """Raised instead of running a command, when its options are parsed."""


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Return a function that parses a command by its own parser, and raises AssertionError if that rejects it."""
    monkeypatch.chdir(ROOT)
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *arguments):
        raise Parsed(parse_args(parser, *arguments))

    def parsed(call, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            with pytest.raises(Parsed) as caught:
                call(*arguments)
        return caught.value.args[0]

    def script(path, arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [path, *arguments])
            options = parsed(lambda: runpy.run_path(path, run_name="__main__"))
        if path.endswith("train_net.py") and options.config_file != "CONFIG":
            options.opts += ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
            load_config(options)

    def check(program, *arguments):
        if program == "python":
            script(arguments[0], arguments[1:])
        elif program == "torchrun":
            start = next(i for i, word in enumerate(arguments) if word.endswith(".py"))
            script(arguments[start], arguments[start + 1 :])
        elif program == "sbatch":
            check(*shlex.split(arguments[-1]))
        elif program == "make":
            subprocess.run(["make", "--dry-run", *arguments], check=True, capture_output=True)
        elif program == "pip":
            import setuptools  # noqa: F401  (pip would import the distutils that setuptools replaces)
            from pip._internal.commands import create_command

            create_command(arguments[0]).parse_args(list(arguments[1:]))
        else:
            parsed({"samcp": samcp.cli, "proposal-cache": proposal_cache.cli}[program].main, arguments)

    def reported(command):
        try:
            check(*command)
        except SystemExit as error:
            raise AssertionError(f"{shlex.join(command)} is rejected with status {error.code}") from error

    return reported


@pytest.mark.parametrize("page", [*PAGES, "MODEL_ZOO.md"])
def test_options_of_commands_exist(page, parse, tmp_path):
    for command in recorded(blocks(page), tmp_path):
        parse(command)


def test_misspelt_option_or_key_is_found(parse):
    with pytest.raises(AssertionError, match="--word x is rejected"):
        parse(["samcp", "models", "--word", "x"])
    with pytest.raises(Exception, match="SOLVER.MAX_ITERS"):
        parse([*f"{TRAIN}/miniature/demo.yaml".split(), "SOLVER.MAX_ITERS", "2"])


def test_every_command_that_is_not_run_is_documented(tmp_path):
    texts = [" ".join(command) for page in PAGES for command in recorded(blocks(page), tmp_path)]
    assert [name for name in NAMES if not any(text.startswith(name) for text in texts)] == []


def test_pages_without_a_test_below_have_no_command_to_run(tmp_path):
    for page in {*PAGES} - {*PAGES_OF_TRAININGS, "docs/api.md"}:
        texts = [" ".join(command) for command in recorded(blocks(page), tmp_path)]
        assert [text for text in texts if not text.startswith(tuple(NAMES))] == [], page


def test_first_command_of_readme(tmp_path):
    make_checkout(tmp_path)
    [command] = run(blocks("README.md")[:1], tmp_path, ())
    assert command[:3] == ["samcp", "segment", "coffee.jpg"]
    assert Image.open(tmp_path / "result" / "coffee.jpg").width == 600


def test_api_page(tmp_path):
    run(blocks("docs/api.md"), tmp_path, ())
    assert Image.open(tmp_path / "coffee.png").width == 600


@pytest.mark.slow
def test_commands_of_pages(tmp_path):
    make_checkout(tmp_path)
    run([block for page in PAGES_OF_TRAININGS for block in blocks(page)], tmp_path, NAMES)
