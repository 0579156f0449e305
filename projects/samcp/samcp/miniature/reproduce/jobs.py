"""Trainings and measurements as values, and the files that they write. Imports nothing heavy."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_IDENTITY_LENGTH = 16  # hexadecimal digits of a hash


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
        training: of the model, if it needs one.
    """

    label: str
    kind: str
    config: str
    data: str
    training: Training | None

    @cached_property
    def identity(self) -> str:
        trained = self.training.identity if self.training else ""
        return _hash(self.kind, self.config, self.data, trained)

    @property
    def is_timed(self) -> bool:
        """Whether it measures time, so that nothing may run beside it."""
        return self.kind == "time"


@dataclass(frozen=True)
class Job:
    """Work of one process: measurements of one training, which it does first, or one measurement without a training."""

    measurements: tuple[Measurement, ...]

    @property
    def training(self) -> Training | None:
        return self.measurements[0].training

    @property
    def label(self) -> str:
        return self.measurements[0].label

    @property
    def is_timed(self) -> bool:
        return self.measurements[0].is_timed

    @property
    def identity(self) -> str:
        """Name of its files."""
        owner = self.training or self.measurements[0]
        return f"{owner.identity}_time" if self.is_timed else owner.identity

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        measurements = []
        for fields in json.loads(text)["measurements"]:
            training = fields["training"]
            measurements.append(Measurement(**{**fields, "training": Training(**training) if training else None}))
        return cls(tuple(measurements))


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


def _hash(*parts: str) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:_IDENTITY_LENGTH]
