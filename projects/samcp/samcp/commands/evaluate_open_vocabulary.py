"""Evaluation of one checkpoint on several datasets, resumable after an interruption."""

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from tabulate import tabulate

from proposal_cache import CacheError
from samcp.checkpoint import load_trained_model
from samcp.config import load_config, of_one_dataset
from samcp.data import check_test_data
from samcp.data.datasets.custom.register import register_files
from samcp.data.files import write_json
from samcp.data.patch_caches import cache_paths
from samcp.errors import USER_ERRORS, DataError, UsageError
from samcp.evaluation.clip_weight import ClipWeightEvaluator, ClipWeightSweep
from samcp.evaluation.results_table import METRICS
from samcp.launch import launch
from samcp.log import start_log
from samcp.trainer import Trainer, use_vocabulary_of
from samcp.vocabulary import Vocabulary

# Column -> (task, metric) of Detectron2's results.
_COLUMNS = {name: METRICS[name] for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "mIoU")}
# Results of the paper's Tables 1, 6, 8 and 11 by name of the config, with κ if it is not 0.4.
_PAPER: dict[str, dict[str, float]] = {
    "coco_to_ade20k": {"PQ": 27.2, "SQ": 77.7, "RQ": 32.9, "PQ_th": 27.0, "PQ_st": 27.7, "AP": 17.0, "mIoU": 31.8},
    "coco_to_ade20k_learned": {"PQ": 17.5, "PQ_th": 15.7, "PQ_st": 21.1, "AP": 11.9, "mIoU": 19.1},
    "coco_to_ade20k_clip": {"PQ": 16.9, "PQ_th": 14.1, "PQ_st": 22.6, "AP": 6.7, "mIoU": 22.5},
    "coco_to_ade20k_sam2": {"PQ": 27.9, "AP": 18.0, "mIoU": 32.6},
    "ade20k_to_coco": {"PQ": 28.6, "SQ": 78.4, "RQ": 34.5, "AP": 21.9, "mIoU": 34.3},
    "coco_to_cityscapes": {"PQ": 41.0, "AP": 29.3, "mIoU": 47.9},
    **{
        f"coco_to_ade20k, kappa {kappa}": {"PQ": pq}
        for kappa, pq in {0.0: 17.5, 0.3: 26.9, 0.4: 27.2, 0.5: 26.2, 0.8: 22.9, 1.0: 16.9}.items()
    },
}

_IDENTITY_LENGTH = hashlib.sha256().digest_size * 2

Results = dict[str, dict[str, Any]]  # row -> task -> metrics


def main(arguments: argparse.Namespace) -> None:
    launch(run, arguments.num_gpus, dist_url="auto", args=(arguments,))


def run(arguments: argparse.Namespace) -> None:
    """Run the evaluation in one process; exit with a message on errors that a user can fix."""
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        start_log(str(arguments.output), comm.get_rank())
        evaluate_all(arguments)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to continue with the remaining datasets")
    if comm.is_main_process():
        print((arguments.output / "table.md").read_text())


@dataclass(frozen=True)
class Job:
    """Evaluation on one dataset.

    Attributes:
        name: of the row: the name of the config, with that of the dataset if the config has several.
        cfg: config with this dataset only.
        identity: hash of everything that the results depend on: config, options, weights, patches and vocabulary.
    """

    name: str
    cfg: CfgNode
    identity: str


def evaluate_all(arguments: argparse.Namespace) -> Results:
    """Evaluate on all datasets without results in the output folder, and write a table of all results.

    Returns:
        The results in the main process, an empty dict in others.

    Raises:
        UsageError: two configs have the same name, or the combination of options cannot run.
    """
    arguments.output.mkdir(parents=True, exist_ok=True)
    register_files(arguments.register)
    jobs = _jobs(arguments)
    path = arguments.output / "results.json"
    done = _read_results(path)
    for job in jobs:
        if job.identity in done:
            print(f"{job.name}: already evaluated")
            continue
        done[job.identity] = evaluate(job.cfg, job.name, arguments.kappa)
        if comm.is_main_process():  # other processes have no results
            write_json(path, done)
    if not comm.is_main_process():
        return {}
    results = {row: tasks for job in jobs for row, tasks in done[job.identity].items()}
    (arguments.output / "table.md").write_text(make_table(results) + "\n")
    return results


def evaluate(cfg: CfgNode, name: str, kappas: Sequence[float]) -> Results:
    """Evaluate the config's checkpoint on its test dataset; return one row, or one per κ."""
    check_test_data(cfg)
    model = load_trained_model(cfg, cfg.MODEL.WEIGHTS)
    [dataset] = cfg.DATASETS.TEST
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset)
    if not kappas:
        return {name: _without_nan(Trainer.test(cfg, model, [Trainer.build_evaluator(cfg, dataset, folder)]))}
    if model.fusion is None:
        raise UsageError("--kappa needs a model with fusion of scores: MODEL.SAMCP.OPEN_VOCABULARY.ENABLED")
    sweep = ClipWeightSweep(model, kappas, cfg.MODEL.SAMCP.OPEN_VOCABULARY.FUSION)
    evaluator = ClipWeightEvaluator(
        {kappa: Trainer.build_evaluator(cfg, dataset, f"{folder}/kappa_{kappa}") for kappa in kappas}
    )
    with use_vocabulary_of(dataset, model):
        results = inference_on_dataset(sweep, Trainer.build_test_loader(cfg, dataset), evaluator)
    return {f"{name}, kappa {kappa}": _without_nan(tasks) for kappa, tasks in results.items()}


def make_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Format our results and the paper's, on alternate lines."""
    lines: list[list[Any]] = []
    for name, tasks in results.items():
        ours = {column: tasks.get(task, {}).get(metric) for column, (task, metric) in _COLUMNS.items()}
        lines.append([name, *ours.values()])
        if name in _PAPER:
            lines.append(["  the paper's", *(_PAPER[name].get(column) for column in _COLUMNS)])
    return tabulate(lines, ["", *_COLUMNS], tablefmt="pipe", floatfmt=".1f", missingval="-")


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    jobs: dict[str, Job] = {}
    for config in arguments.configs:
        cfg = _load(config, arguments)
        for i, dataset in enumerate(cfg.DATASETS.TEST):
            name = config.stem if len(cfg.DATASETS.TEST) == 1 else f"{config.stem}, {dataset}"
            if name in jobs:
                raise UsageError(f"{config}: duplicate row {name}; rename the file")
            one = of_one_dataset(cfg, i)
            jobs[name] = Job(name, one, _identity(one, arguments))
    return list(jobs.values())


def _load(config: Path, arguments: argparse.Namespace) -> CfgNode:
    overrides = ["MODEL.WEIGHTS", str(arguments.weights), "OUTPUT_DIR", str(arguments.output.resolve() / config.stem)]
    overrides += ["DATASETS.STRICT", "True"] if arguments.strict else []
    if arguments.kappa:  # otherwise a config with κ = 0 would disable the fusion
        overrides += ["MODEL.SAMCP.OPEN_VOCABULARY.KAPPA", str(max(arguments.kappa))]
    options = ["--config-file", str(config), "--eval-only", *overrides, *arguments.opts]
    return load_config(default_argument_parser().parse_args(options))


def _identity(cfg: CfgNode, arguments: argparse.Namespace) -> str:
    """Return the hash of a job; unreadable files are ignored here and reported by the evaluation."""
    files = [arguments.weights]
    with suppress(CacheError):
        files += [Path(cache, "manifest.json") for cache in cache_paths(cfg, is_train=False).values()]
    modified = [file.stat().st_mtime if file.exists() else 0 for file in files]
    words = []
    for dataset in cfg.DATASETS.TEST:
        with suppress(DataError):
            words.append(Vocabulary.of_dataset(dataset).to_json())
    return hashlib.sha256(repr((cfg.dump(), modified, words, arguments.kappa)).encode()).hexdigest()


def _read_results(path: Path) -> dict[str, Results]:
    """Return results by identity, without those of other versions; an empty dict if the file is damaged."""
    try:
        content = json.loads(path.read_bytes())
        return {identity: dict(rows) for identity, rows in content.items() if len(identity) == _IDENTITY_LENGTH}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        print(f"{path}: cannot be read; evaluating all datasets again")
        return {}


def _without_nan(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN by None for json."""
    return {
        task: {metric: None if math.isnan(value) else value for metric, value in metrics.items()}
        for task, metrics in tasks.items()
    }
