"""Trainings and measurements of the tables; those that several rows share are done once."""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from samcp.config import load_config
from samcp.config_overrides import merge_overrides
from samcp.miniature.reproduce.data import data_identity, patch_folder
from samcp.miniature.reproduce.tables import Row, Table

_IDENTITY_LENGTH = 16  # hexadecimal digits of a hash


@dataclass(frozen=True)
class Protocol:
    """Size of the experiments.

    Attributes:
        seeds: number of trainings per row, with SEED 0, 1, ...
        quick: train for half of the iterations of the configs.
    """

    seeds: int
    quick: bool


@dataclass(frozen=True)
class Training:
    """Training of a model, identified by everything that it depends on.

    Attributes:
        config: yaml of the config, with neither OUTPUT_DIR nor test datasets.
        data: identity of the datasets and patches.
    """

    config: str
    data: str

    @cached_property
    def identity(self) -> str:
        return _hash(self.config, self.data)


@dataclass(frozen=True)
class Measurement:
    """Measurement of a model or, without a training, of patches or of the oracle.

    Attributes:
        label: table, row and seed that need it first, for messages.
        kind: of :data:`samcp.miniature.reproduce.tables.METRICS`.
        config: yaml of the config with one test dataset.
        data: identity of the test dataset and its patches.
        generator: name of the generator of the patches.
        training: of the model, if it needs one.
    """

    label: str
    kind: str
    config: str
    data: str
    generator: str
    training: Training | None

    @cached_property
    def identity(self) -> str:
        trained = self.training.identity if self.training else ""
        return _hash(self.kind, self.config, self.data, self.generator, trained)


@dataclass(frozen=True)
class Job:
    """Work of one process: a training with its measurements, or a measurement without a training."""

    training: Training | None
    measurements: tuple[Measurement, ...]

    @property
    def label(self) -> str:
        return self.measurements[0].label

    @property
    def identity(self) -> str:
        return self.training.identity if self.training else self.measurements[0].identity


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
        missing = [m for cell in self.cells.values() for m in cell if not result_file(output, m).exists()]
        distinct = {measurement.identity: measurement for measurement in reversed(missing)}.values()
        groups: dict[str, list[Measurement]] = {}
        for measurement in reversed(distinct):
            key = measurement.training.identity if measurement.training else measurement.identity
            groups.setdefault(key + measurement.kind * (measurement.kind == "time"), []).append(measurement)
        jobs = [Job(group[0].training, tuple(group)) for group in groups.values()]
        return sorted(jobs, key=is_timed)


def is_timed(job: Job) -> bool:
    """Return whether a job measures time, so that no other may run beside it."""
    return job.measurements[0].kind == "time"


def training_folder(output: Path, training: Training) -> Path:
    """Return the OUTPUT_DIR of a training."""
    return output / "trainings" / training.identity


def result_file(output: Path, measurement: Measurement) -> Path:
    """Return the json file of the results of a measurement."""
    return output / "results" / f"{measurement.identity}.json"


def read_result(output: Path, measurement: Measurement) -> dict[str, Any] | None:
    """Return the results of a measurement, None if it is not finished."""
    path = result_file(output, measurement)
    return json.loads(path.read_text()) if path.exists() else None


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
    cfg = load_config(argparse.Namespace(config_file=row.config, opts=[], eval_only=False)).clone()
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


def _measurement(label: str, kind: str, row: Row, dataset: str, cfg: CfgNode, training: Training | None) -> Measurement:
    patches = patch_folder(dataset, row.test_patches)
    test = {"DATASETS.TEST": (dataset,), "DATASETS.PATCHES_TEST": (patches,)}
    _merge(cfg, {**test, **row.evaluation})
    return Measurement(label, kind, cfg.dump(), data_identity(dataset, row.test_patches), row.test_patches, training)


def _merge(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    merge_overrides(cfg, [text for key, value in values.items() for text in (key, str(value))])


def _hash(*parts: str) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:_IDENTITY_LENGTH]
