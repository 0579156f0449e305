"""Report of a training, written at its end."""

import itertools
import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from samcp.config import oracle_config
from samcp.data.build import load_records
from samcp.data.dataset_mapper import build_augmentations
from samcp.data.patch_caches import cache_paths
from samcp.evaluation.image_quality import SegmentedImage, by_quality, segment_images
from samcp.modeling.meta_arch import SAMCP
from samcp.predictor import Predictor
from samcp.visualization.pages import Section, write_page
from samcp.visualization.report import config_section, curves_section, data_section, images_section, results_section

logger = logging.getLogger(__name__)

_FILE = "report.html"
_RANKED = 100  # images that the best and the worst are chosen from, the first of the dataset
_SHOWN = 3  # best, and as many worst images


class TrainingReport(HookBase):
    """Hook that writes OUTPUT_DIR/report.html after the last evaluation: results, curves, images, data and config."""

    def after_train(self) -> None:
        trainer: Any = self.trainer
        if trainer.iter + 1 < trainer.max_iter:
            return  # interrupted
        cfg, model = trainer.cfg, getattr(trainer.model, "module", trainer.model)
        model.oracle = True
        oracle = trainer.test(oracle_config(cfg), trainer.model)
        model.oracle = False
        if comm.is_main_process():
            path = write_report(cfg, model, trainer._last_eval_results, oracle)
            logger.info("Report: %s", path)


def write_report(cfg: CfgNode, model: SAMCP, results: dict[str, Any], oracle: dict[str, Any]) -> Path:
    """Write OUTPUT_DIR/report.html.

    Args:
        cfg: config of the training; OUTPUT_DIR has its metrics.json.
        model: the trained model.
        results, oracle: from :meth:`samcp.trainer.Trainer.test`, of the model and of the oracle.
    """
    datasets = list(cfg.DATASETS.TEST)
    if len(datasets) == 1:
        results, oracle = ({datasets[0]: value} for value in (results, oracle))
    sections = [results_section(name, results[name], oracle[name]) for name in datasets]
    sections.append(curves_section(cfg.OUTPUT_DIR, datasets))
    for name in datasets:
        sections += _image_sections(cfg, model, name)
    sections += [data_section(cfg), config_section(cfg)]
    return write_page(Path(cfg.OUTPUT_DIR) / _FILE, f"Training {Path(cfg.OUTPUT_DIR).name}", sections)


def _image_sections(cfg: CfgNode, model: SAMCP, dataset: str) -> list[Section]:
    """Return the best and the worst images of a dataset."""
    path = cache_paths(cfg, is_train=False)[dataset]
    records, cache = load_records(dataset, path, skip_failed=not cfg.DATASETS.STRICT)
    augmentations = build_augmentations(cfg, is_train=False)
    predictor = Predictor(model, augmentations=augmentations, image_format=cfg.INPUT.FORMAT)
    images = itertools.islice(segment_images(predictor, dataset, records, cache), _RANKED)
    ranked: list[SegmentedImage] = by_quality(images)
    of = f"of the first {len(ranked)} images of {dataset}"
    worst, best = ranked[:_SHOWN], ranked[_SHOWN:][::-1][:_SHOWN]
    if not best:
        return [images_section(f"The {len(ranked)} images of {dataset}, the worst first", dataset, worst)]
    return [images_section(f"Worst {of}", dataset, worst), images_section(f"Best {of}", dataset, best)]
