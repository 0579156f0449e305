"""Definitions of the tables: a yaml file for each says which configs make its rows and what the paper claims."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samcp.config_files import CONFIGS
from samcp.errors import UsageError
from samcp.evaluation.results_table import METRICS as EVALUATION_METRICS
from samcp.yaml_files import read_yaml

FOLDER = CONFIGS / "miniature" / "tables"
_ABLATIONS = CONFIGS / "ablations"

# Kind of measurement -> its metrics.
UNSEEN = "PQ unseen"
METRICS: Mapping[str, tuple[str, ...]] = {
    "evaluation": (*EVALUATION_METRICS, UNSEEN),
    "patches": ("mIoU", "mIoU>0.5", "MR 0.25", "MR 0.5", "MR 0.75"),
    "time": ("patches s", "other s", "total s"),
    "silhouette": ("classes", "instances"),
}


@dataclass(frozen=True)
class Row:
    """Row of a table.

    Attributes:
        name: unique in the table.
        paper: column of the table -> figure of the paper, for the columns that the paper has.
        config: of the training, a file or the name of a packaged config.
        train: datasets to train on.
        settings: config keys and values of the training, for example those of an ablation config.
        evaluation: further config keys and values of the evaluation.
        patches: generator of the patches for training; see :data:`samcp.miniature.reproduce.data.GENERATORS`.
        test_patches: generator of the patches for evaluation.
        part: which of the results of a measurement without training: "best_patch" or "merged", or a stage of t-SNE.
    """

    name: str
    config: str
    train: tuple[str, ...]
    patches: str
    test_patches: str
    paper: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""


@dataclass(frozen=True)
class Claim:
    """Claim of the paper: ``metric of higher > factor * metric of lower``, in the mean over seeds.

    Attributes:
        column: of the table.
        higher, lower: names of rows.
        factor: for claims about the size of the difference.
        main: part of the table's main claim; the others are details.
    """

    column: str
    higher: str
    lower: str
    factor: float = 1.0
    main: bool = False

    def __str__(self) -> str:
        factor = "" if self.factor == 1 else f"{self.factor:g} × "
        return f"{self.column}: {self.higher} > {factor}{self.lower}"


@dataclass(frozen=True)
class Table:
    """Table of the paper.

    Attributes:
        name: such as "table3".
        title: of its section.
        setting: the paper's datasets and backbone, to say what its figures are of.
        kinds: of measurements (keys of :data:`METRICS`) that give the metrics.
        datasets: to evaluate on.
        metrics: of each dataset.
        rows, claims: see the classes.
        note: what differs from the paper, and why a claim may fail here.
    """

    name: str
    title: str
    setting: str
    kinds: tuple[str, ...]
    datasets: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str

    @property
    def columns(self) -> dict[str, tuple[str, str]]:
        """Column -> (dataset, metric). With several datasets, a column is named by both, as in "open_val PQ"."""
        if len(self.datasets) == 1:
            return {metric: (self.datasets[0], metric) for metric in self.metrics}
        short = {dataset: dataset.removeprefix("miniature_") for dataset in self.datasets}
        return {f"{short[d]} {metric}": (d, metric) for d in self.datasets for metric in self.metrics}

    def kind_of(self, metric: str) -> str:
        """Return the kind of measurement that gives a metric."""
        return next(kind for kind in self.kinds if metric in METRICS[kind])


def table_names(folder: Path = FOLDER) -> list[str]:
    """Return the names of all tables, in the paper's order."""
    names = [path.stem for path in folder.glob("*.yaml")]
    return sorted(names, key=lambda name: (name.startswith("figure"), int(re.sub(r"\D", "", name))))


def load_table(name: str, folder: Path = FOLDER) -> Table:
    """Load the definition of a table.

    Raises:
        UsageError: there is no such table, or its file is invalid; the message names the file.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"there is no table {name!r}; choose all or some of {', '.join(table_names(folder))}")
    try:
        content = read_yaml(path)
        defaults = {key: content.pop(key) for key in ("config", "train", "patches")}
        rows = tuple(_row(row, options or {}, defaults) for row, options in content.pop("rows").items())
        claims = tuple(Claim(**claim) for claim in content.pop("claims"))
        kinds = tuple(content.pop("kinds", ["evaluation"]))
        lists: dict[str, Any] = {key: tuple(content.pop(key)) for key in ("datasets", "metrics")}
        table = Table(name=name, rows=rows, claims=claims, kinds=kinds, **lists, **content)
        _check(table)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: {error}") from error
    return table


def ablation_settings(name: str) -> dict[str, Any]:
    """Return the keys and values that an ablation config, such as "table3/without_dice", changes."""
    folder = name.partition("/")[0]
    content = read_yaml(_ABLATIONS / f"{name}.yaml")
    base = content.pop("_BASE_").removesuffix(".yaml")
    del content["OUTPUT_DIR"]
    # The base is another ablation in the same folder, or the model that all of them change.
    inherited = {} if "/" in base else ablation_settings(f"{folder}/{base}")
    return inherited | dict(_flatten(content))


def _row(name: str, options: dict[str, Any], defaults: Mapping[str, Any]) -> Row:
    options = {**defaults, **options}
    ablation = options.pop("ablation", None)
    settings = {**(ablation_settings(ablation) if ablation else {}), **options.pop("settings", {})}
    options["train"] = tuple(options["train"])
    return Row(name=name, settings=settings, test_patches=options.pop("test_patches", options["patches"]), **options)


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        pairs += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs


def _check(table: Table) -> None:
    """Raise ValueError if a claim or a figure of the paper is of an unknown row or column."""
    known = [metric for kind in table.kinds for metric in METRICS[kind]]
    rows = {row.name for row in table.rows}
    named = [claim.column for claim in table.claims] + [column for row in table.rows for column in row.paper]
    for what, unknown in (
        ("metrics", set(table.metrics) - set(known)),
        ("columns", set(named) - set(table.columns)),
        ("rows", {row for claim in table.claims for row in (claim.higher, claim.lower)} - rows),
    ):
        if unknown:
            raise ValueError(f"it has no {what} {', '.join(sorted(unknown))}")
    if not any(claim.main for claim in table.claims):
        raise ValueError("it has no main claim; add main: true to one")
