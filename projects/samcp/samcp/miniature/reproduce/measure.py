"""Process of one job: train a model and measure it. The job is a json file; see :mod:`.workers`."""

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.env import seed_all_rng

from proposal_cache.store.lock import rank_lock
from samcp.checkpoint import load_trained_model
from samcp.commands.evaluate_patches import describe
from samcp.commands.measure_time import time_image
from samcp.config import parse_config, without_pretraining
from samcp.data.build import load_records
from samcp.data.files import write_json
from samcp.evaluation.patch_quality import measure_dataset
from samcp.evaluation.results_table import METRICS
from samcp.log import start_log
from samcp.miniature.reproduce.data import load_generator
from samcp.miniature.reproduce.jobs import Job, Measurement, Training, result_file, training_folder
from samcp.miniature.reproduce.tables import UNSEEN
from samcp.predictor import Predictor
from samcp.regions import true_regions
from samcp.trainer import Trainer
from samcp.visualization.tsne import STAGES, PatchFeatures, patch_features, silhouette
from samcp.vocabulary import Vocabulary

_TIMED_IMAGES = 20
_TSNE_IMAGES = 40


def main() -> None:
    """Run the job of the command line: the path of a job's json and the output folder."""
    job = Job.from_json(Path(sys.argv[1]).read_text())
    output = Path(sys.argv[2])
    torch.set_num_threads(1)
    if job.training:
        train(job.training, output)
    for measurement in job.measurements:
        if not result_file(output, measurement).exists():
            measure(measurement, output)


def train(training: Training, output: Path) -> None:
    """Train a model, or continue an interrupted training; a finished one is skipped."""
    cfg = _config(training.config, training_folder(output, training))
    if (Path(cfg.OUTPUT_DIR) / "model_final.pth").exists():
        return
    with rank_lock(Path(cfg.OUTPUT_DIR), 0):  # the process of a killed command may still be training
        start_log(cfg.OUTPUT_DIR, 0)
        seed_all_rng(cfg.SEED)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()


def measure(measurement: Measurement, output: Path) -> None:
    """Measure, and write the results with the date, the machine and the seconds that it took."""
    folder = training_folder(output, measurement.training) if measurement.training else output / "oracle"
    cfg = _config(measurement.config, folder / "evaluations" / measurement.identity)
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth") if measurement.training else ""
    started = time.perf_counter()
    metrics = _KINDS[measurement.kind](cfg)
    result = {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "seconds": time.perf_counter() - started,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
    }
    write_json(result_file(output, measurement), result)


def describe_machine() -> str:
    """Return processor, number of cores and version of PyTorch."""
    models = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"


def evaluate(cfg: CfgNode) -> dict[str, float]:
    """Evaluate a model, a baseline or the oracle; return the metrics of METRICS that the dataset has, in percent."""
    is_oracle = cfg.TEST.ORACLE
    model = Trainer.build_model(without_pretraining(cfg)) if is_oracle else load_trained_model(cfg, cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    metrics = {
        name: results[task][metric] for name, (task, metric) in METRICS.items() if metric in results.get(task, {})
    }
    return metrics | _unseen_quality(cfg, results.get("panoptic_seg", {}))


def measure_patches(cfg: CfgNode) -> dict[str, float]:
    """Measure the patches of a dataset's things, alone and merged by the ground truth (Table 9)."""
    [dataset], [patches] = cfg.DATASETS.TEST, cfg.DATASETS.PATCHES_TEST
    quality = measure_dataset(dataset, os.path.join(os.environ["DETECTRON2_DATASETS"], patches))
    things = describe(dataset, quality)["groups"]["things"]
    return {f"{part} {name}": things[part][name] for part in ("best_patch", "merged") for name in things[part]}


def measure_time(cfg: CfgNode) -> dict[str, float]:
    """Time the generator of patches and everything else, in seconds per image (Table 11)."""
    [dataset], [patches] = cfg.DATASETS.TEST, cfg.DATASETS.PATCHES_TEST
    records, _ = load_records(dataset, os.path.join(os.environ["DETECTRON2_DATASETS"], patches))
    generator = load_generator(Path(patches).parent.name)
    predictor = Predictor.from_pretrained(cfg.MODEL.WEIGHTS, generator=generator)
    files = [record["file_name"] for record in records[: _TIMED_IMAGES + 1]]
    rows = [time_image(predictor, file, "cpu")[0] for file in files]
    generate, *_, others, whole = np.mean(rows[1:], axis=0)  # the first is the warm-up
    return {"patches s": generate, "other s": others, "total s": whole}


def measure_silhouette(cfg: CfgNode) -> dict[str, float]:
    """Compute the silhouette of classes and instances before and after the patch encoder (Fig. 13).

    Instances are compared within each image, since those of other images need not be apart.
    """
    [dataset], [patches] = cfg.DATASETS.TEST, cfg.DATASETS.PATCHES_TEST
    records, cache = load_records(dataset, os.path.join(os.environ["DETECTRON2_DATASETS"], patches))
    predictor, metadata = Predictor.from_pretrained(cfg.MODEL.WEIGHTS), MetadataCatalog.get(dataset)
    parts = []
    for record in records[:_TSNE_IMAGES]:
        own = cache[record["key"]]
        truth = true_regions(record, (own.height, own.width), metadata)
        parts.append(patch_features(predictor(record["file_name"], own), truth))
    features = PatchFeatures.concatenate(parts)
    scores = {}
    for stage in STAGES:
        scores[f"{stage} classes"] = silhouette(*features.by_class(stage)[:2])
        scores[f"{stage} instances"] = float(np.nanmean([silhouette(*part.by_instance(stage)[:2]) for part in parts]))
    return scores


_KINDS: Mapping[str, Callable[[CfgNode], dict[str, float]]] = {
    "evaluation": evaluate,
    "patches": measure_patches,
    "time": measure_time,
    "silhouette": measure_silhouette,
}


def _unseen_quality(cfg: CfgNode, panoptic: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean PQ of the classes that were not in the training, an empty dict if there are none."""
    seen = {name for dataset in cfg.DATASETS.TRAIN for name in Vocabulary.of_dataset(dataset).names}
    unseen = [name for name in Vocabulary.of_dataset(cfg.DATASETS.TEST[0]).names if name not in seen]
    values = [panoptic[f"PQ-{name}"] for name in unseen if f"PQ-{name}" in panoptic]
    return {UNSEEN: float(np.nanmean(values))} if values else {}


def _config(text: str, folder: Path) -> CfgNode:
    """Parse a config, and set its OUTPUT_DIR."""
    cfg = parse_config(text)
    cfg.OUTPUT_DIR = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return cfg


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
