"""Demo: patch generation, training, evaluation, oracle and a page of visualizations."""

import argparse
import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_argument_parser
from detectron2.engine.hooks import EvalHook
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from proposal_cache import PatchCache
from proposal_cache.generation.engines import GeneratorFactory
from proposal_cache.generation.engines.local import LocalEngine
from proposal_cache.generation.options import build_generator
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_folder
from samcp.checkpoint import Checkpointer
from samcp.config import load_config, oracle_config
from samcp.data.build import dataset_images, load_records
from samcp.data.datasets.synthetic.prepare import make_synthetic_dataset
from samcp.data.datasets.synthetic.register import register_synthetic
from samcp.errors import USER_ERRORS, UsageError
from samcp.evaluation import compare_with_oracle
from samcp.evaluation.image_quality import segment_images
from samcp.predictor import Predictor
from samcp.trainer import Trainer
from samcp.visualization.demo_page import photograph_rows, write_demo_page, write_photographs
from samcp.visualization.report import curves_section, images_section, results_section

_CONFIG = "configs/miniature/demo.yaml"
_GENERATE = "scripts/generate_sam_patches.py"
_SPLITS = ("synthetic_train", "synthetic_val")
_PATCHES = 60  # of a scene; the default number is for photographs, which are more complex
_PHOTOGRAPH_MODEL = "samcp-everyday-lite"
_PICTURES = 8  # validation images on the page
_MARK = "config.sha256"  # fingerprint of the config, in the folder of the training
_STAGES = 5


def main(arguments: argparse.Namespace) -> None:
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _send_messages_to(folder / "log.txt")
    try:
        run(folder, arguments)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")


def run(folder: Path, arguments: argparse.Namespace) -> None:
    """Run and announce all stages."""
    started = time.perf_counter()
    cfg = configure(folder, arguments.opts)
    _check_run_folder(Path(cfg.OUTPUT_DIR))
    _announce(1, f"Drawing {arguments.train} + {arguments.val} scenes, copying photographs")
    make_synthetic_dataset(folder / "synthetic", arguments.train, arguments.val)
    register_synthetic(folder / "synthetic")
    write_photographs(folder / "photographs")

    _announce(2, "Cutting them into patches")
    make_patches(folder)

    _announce(3, f"Training for {cfg.SOLVER.MAX_ITER} iterations")
    train(cfg)

    _announce(4, "Evaluating the model, and the oracle beside it")
    results = evaluate(cfg)
    table = compare_with_oracle(results["model"], results["oracle"])
    for row in [("", "model", "oracle", "share"), *table]:
        print("   " + f"{row[0]:<20}" + "".join(f"{cell:>9}" for cell in row[1:]))

    _announce(5, "Painting the page")
    page = paint(cfg, folder, results, _commands(arguments))
    minutes = (time.perf_counter() - started) / 60
    print(
        f"\nDone in {minutes:.1f} minutes. Open in a browser: {page}\nMessages of the libraries: {folder / 'log.txt'}"
    )


def make_patches(folder: Path) -> None:
    """Generate the patches of both splits and of the photographs, as scripts/generate_sam_patches.py does."""
    scenes = {"patches": _PATCHES}
    train, val = _SPLITS
    images = from_folder(folder / "photographs")
    for name, sources, parameters, workers in (
        (train, dataset_images(train), scenes, os.cpu_count() or 1),
        (val, dataset_images(val), scenes, 0),  # too few images to start processes for
        ("photographs", images, {}, 0),
    ):
        factory = GeneratorFactory(partial(build_generator, "contours", parameters))
        generate(sources, factory, folder / "patches" / name, name, engine=LocalEngine(workers=workers))


def configure(folder: Path, opts: list[str]) -> CfgNode:
    """Return the demo's config with data in `folder` and the user's overrides."""
    overrides = [
        *("DATASETS.PATCHES_TRAIN", repr((str(folder / "patches" / "synthetic_train"),))),
        *("DATASETS.PATCHES_TEST", repr((str(folder / "patches" / "synthetic_val"),))),
        *("OUTPUT_DIR", str(folder / "run")),
        *("TEST.REPORT", "False"),  # the page of the demo has the same sections
    ]
    options = ["--config-file", _CONFIG, "--resume", *overrides, *opts]
    return load_config(default_argument_parser().parse_args(options))


class _Trainer(Trainer):
    """Trainer with a progress bar and without the final evaluation, which is a separate stage."""

    def build_hooks(self) -> list[HookBase]:
        return [hook for hook in super().build_hooks() if not isinstance(hook, EvalHook)] + [_Progress()]


class _Progress(HookBase):
    """Progress bar with rate, remaining time and loss."""

    def before_train(self) -> None:
        self.bar = tqdm(total=self.trainer.max_iter, initial=self.trainer.start_iter, unit="it", mininterval=1)

    def after_step(self) -> None:
        loss, _ = self.trainer.storage.latest()["total_loss"]
        self.bar.set_postfix(loss=f"{loss:.2f}", refresh=False)
        self.bar.update()

    def after_train(self) -> None:
        self.bar.close()


def train(cfg: CfgNode) -> None:
    """Train, resume an interrupted training, or skip a finished one; a changed config restarts the training."""
    run, fingerprint = Path(cfg.OUTPUT_DIR), _fingerprint(cfg)
    mark = run / _MARK
    if mark.exists() and mark.read_text() != fingerprint:
        shutil.rmtree(run)
    run.mkdir(exist_ok=True)
    mark.write_text(fingerprint)
    if (run / "model_final.pth").exists():
        print("   already trained")
        return
    seed_all_rng(cfg.SEED)
    with _quiet(cfg):
        trainer = _Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()


def evaluate(cfg: CfgNode) -> dict[str, Any]:
    """Return the results of the model and of the oracle."""
    oracle = oracle_config(cfg)
    with _quiet(cfg):
        return {
            "model": _Trainer.test(cfg, _trained_model(cfg)),
            "oracle": _Trainer.test(oracle, _Trainer.build_model(oracle)),
        }


def paint(cfg: CfgNode, folder: Path, results: Mapping[str, Any], commands: list[str]) -> Path:
    """Write the page; return its path."""
    name = cfg.DATASETS.TEST[0]
    records, cache = load_records(name, cfg.DATASETS.PATCHES_TEST[0])
    with _quiet(cfg):
        predictor = Predictor.from_pretrained(Path(cfg.OUTPUT_DIR) / "model_final.pth")
        images = list(segment_images(predictor, name, records[:_PICTURES], cache))
        photographs = photograph_rows(
            folder / "photographs",
            PatchCache(folder / "patches" / "photographs"),
            Predictor.from_pretrained(_PHOTOGRAPH_MODEL),
        )
    about = [
        _describe_training(cfg),
        "The images are drawn, so the results show that the code works, not how good it is.",
    ]
    sections = [
        results_section(name, results["model"], results["oracle"], about),
        images_section("Predictions", name, images),
        curves_section(cfg.OUTPUT_DIR, []),
    ]
    return write_demo_page(folder, sections, photographs, commands)


def _check_run_folder(run: Path) -> None:
    """Raise UsageError if the folder of the training has files that are not of a demo, which might be deleted later."""
    if run.exists() and not (run / _MARK).exists() and any(run.iterdir()):
        raise UsageError(
            f"{run} has files, but is not of a demo ({_MARK} is missing); choose another folder by --output"
        )


def _send_messages_to(file: Path) -> None:
    """Redirect messages of libraries to a file."""
    logging.basicConfig(filename=file, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    logging.getLogger("torch").setLevel(logging.ERROR)  # ignores the configuration above


def _announce(number: int, stage: str) -> None:
    print(f"== {number}/{_STAGES} {stage}", flush=True)


def _fingerprint(cfg: CfgNode) -> str:
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def _trained_model(cfg: CfgNode) -> torch.nn.Module:
    model = _Trainer.build_model(cfg)
    Checkpointer(model, cfg).load(str(Path(cfg.OUTPUT_DIR) / "model_final.pth"))
    return model


@contextlib.contextmanager
def _quiet(cfg: CfgNode) -> Iterator[None]:
    """Redirect standard output to a file; the progress bar is on standard error."""
    with open(Path(cfg.OUTPUT_DIR) / "stdout.txt", "a") as file, contextlib.redirect_stdout(file):
        yield


def _describe_training(cfg: CfgNode) -> str:
    images = len(load_records(cfg.DATASETS.TRAIN[0], cfg.DATASETS.PATCHES_TRAIN[0])[0])
    return (
        f"A miniature of the model ({_CONFIG}), trained from ImageNet weights on {images} drawn scenes "
        f"for {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images."
    )


def _commands(arguments: argparse.Namespace) -> list[str]:
    """Return the commands that reproduce the demo."""
    folder = arguments.output
    train = f"python projects/samcp/train_net.py --config-file {_CONFIG}"
    keys = shlex.join(["OUTPUT_DIR", str(folder / "run"), *arguments.opts])
    return [
        f"export DETECTRON2_DATASETS={shlex.quote(str(folder))}",
        f"python scripts/prepare_synthetic.py --train {arguments.train} --val {arguments.val}",
        *(
            f"python {_GENERATE} --dataset {split} --generator contours --patches {_PATCHES} "
            f"--output {shlex.quote(str(folder / 'patches' / split))}"
            for split in _SPLITS
        ),
        f"{train} {keys}",
        f"{train} --eval-only MODEL.WEIGHTS {shlex.quote(str(folder / 'run' / 'model_final.pth'))} {keys}",
        f"{train} --eval-only TEST.ORACLE True {keys}",
    ]
