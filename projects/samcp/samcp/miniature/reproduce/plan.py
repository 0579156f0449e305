"""Trainings and measurements of the tables; those that several rows share are done once."""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from samcp.config import load_config
from samcp.config_overrides import merge_overrides
from samcp.miniature.reproduce.data import data_identity, patch_folder
from samcp.miniature.reproduce.jobs import Job, Measurement, Training, result_file
from samcp.miniature.reproduce.tables import Row, Table


@dataclass(frozen=True)
class Protocol:
    """Size of the experiments.

    Attributes:
        seeds: number of trainings per row, with SEED 0, 1, ...
        quick: train for half of the iterations of the configs.
    """

    seeds: int
    quick: bool


class Plan:
    """Measurements of some tables.

    Attributes:
        cells: (row, kind, dataset) of each table -> its measurements, one per seed, or one if it has no training.
    """

    def __init__(self, tables: Sequence[Table], protocol: Protocol) -> None:
        self.cells: dict[tuple[str, str, str, str], list[Measurement]] = {
            (table.name, row.name, kind, dataset): _measurements(table, row, kind, dataset, protocol)
            for table in tables
            for row in table.rows
            for kind in table.kinds
            for dataset in table.datasets
        }

    def of_cell(self, table: Table, row: Row, column: str) -> list[Measurement]:
        """Return the measurements that give the figures of a cell."""
        dataset, metric = table.columns[column]
        return self.cells[table.name, row.name, table.kind_of(metric), dataset]

    def jobs(self, output: Path) -> list[Job]:
        """Group the measurements without results by their training; measurements of time are last."""
        groups: dict[tuple[str, bool], dict[str, Measurement]] = {}
        for measurement in itertools.chain(*self.cells.values()):
            if not result_file(output, measurement).exists():
                owner = measurement.training or measurement
                group = groups.setdefault((owner.identity, measurement.is_timed), {})
                group.setdefault(measurement.identity, measurement)
        jobs = [Job(tuple(group.values())) for group in groups.values()]
        return sorted(jobs, key=lambda job: job.is_timed)


def _measurements(table: Table, row: Row, kind: str, dataset: str, protocol: Protocol) -> list[Measurement]:
    label = f"{table.name}, {row.name}"
    if kind == "patches" or row.evaluation.get("TEST.ORACLE"):
        return [_measurement(label, kind, row, dataset, training_config(row, 0, protocol), None)]
    measurements = []
    for seed in range(protocol.seeds):
        cfg = training_config(row, seed, protocol)
        data = "".join(data_identity(name, row.patches) for name in row.train)
        training = Training(cfg.dump(), data)
        measurements.append(_measurement(f"{label}, seed {seed}", kind, row, dataset, cfg, training))
    return measurements


def training_config(row: Row, seed: int, protocol: Protocol) -> CfgNode:
    """Return the config of the training of a row."""
    cfg = _load(row.config).clone()
    cfg.defrost()
    if protocol.quick:
        cfg.SOLVER.MAX_ITER //= 2
        cfg.SOLVER.STEPS = tuple(step // 2 for step in cfg.SOLVER.STEPS)
    data = {
        "DATASETS.TRAIN": row.train,
        "DATASETS.PATCHES_TRAIN": tuple(patch_folder(name, row.patches) for name in row.train),
        "DATASETS.TEST": (),
        "DATASETS.PATCHES_TEST": (),
    }
    _merge(cfg, {**data, **row.settings, "SEED": seed, "OUTPUT_DIR": "", "TEST.REPORT": False})
    return cfg


@cache
def _load(config: str) -> CfgNode:
    return load_config(argparse.Namespace(config_file=config, opts=[], eval_only=False))


def _measurement(label: str, kind: str, row: Row, dataset: str, cfg: CfgNode, training: Training | None) -> Measurement:
    patches = patch_folder(dataset, row.test_patches)
    test = {"DATASETS.TEST": (dataset,), "DATASETS.PATCHES_TEST": (patches,)}
    _merge(cfg, {**test, **row.evaluation})
    return Measurement(label, kind, cfg.dump(), data_identity(dataset, row.test_patches), training)


def _merge(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    merge_overrides(cfg, [text for key, value in values.items() for text in (key, str(value))])
