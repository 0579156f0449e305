"""Document of the results: a section per table, with the paper's figures beside ours and a verdict per claim."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from samcp.data.files import write_bytes
from samcp.errors import DataError
from samcp.miniature.reproduce.jobs import read_result
from samcp.miniature.reproduce.plan import Plan, Protocol
from samcp.miniature.reproduce.statistics import DECISIONS, DIRECTION_ONLY, HOLDS, Verdict, paired_test
from samcp.miniature.reproduce.tables import Claim, Row, Table

_HEADING = "## "
NOT_MEASURED = "not measured"
_TITLE = re.compile(r"(Table|Figure) \d+\. ")
_MAIN = "Main claim: "
_ONE_DIGIT = 10
_INTRODUCTION = """\
# The paper in miniature

The tables of the paper, repeated with the same code on drawn scenes of 256 x 256 pixels with a small SAM-CP and a small
CLIP, so that each claim has an experiment that runs on a laptop. The figures are not comparable with the paper's; the
claims, which compare rows, are. `scripts/reproduce.py` writes this document; the definitions of the tables are in
`configs/miniature/tables`.

The patches are those of the generator `contours`, which was trained on photographs; the rows "oracle" show what they
allow. A small SAM on these scenes did not get as far ([datasets.md](datasets.md#miniature)).

Each row is trained once per seed. Its figures are the mean ± the standard deviation over the seeds. A claim *holds*, or
*does not hold*, if the one-sided paired t-test over the seeds gives p < 0.05 in that direction, and is *undecided*
otherwise. With three seeds, a difference is significant only if it exceeds 1.7 standard deviations of the paired
differences, so "undecided" is no evidence against a claim; and of twenty claims without any effect, one is expected to
hold by chance.

The main claim of an ablation is the largest difference of the paper.
"""


@dataclass(frozen=True)
class Section:
    """Results of one table.

    Attributes:
        table: its definition.
        values: (row, column) -> one value per seed; empty if it is not measured.
        dates: of the measurements.
        machines: that the measurements ran on.
        command: that makes the table.
    """

    table: Table
    values: Mapping[tuple[str, str], Sequence[float]]
    dates: Sequence[str]
    machines: Sequence[str]
    command: str

    @property
    def title(self) -> str:
        number = re.sub(r"(\d+)", r" \1", self.table.name).capitalize()
        return f"{number}. {self.table.title}"

    def verdict(self, claim: Claim) -> Verdict | None:
        """Return the verdict on a claim, None if one of its rows is not measured."""
        higher, lower = (self.values[row, claim.column] for row in (claim.higher, claim.lower))
        if not higher or not lower or math.isnan(sum([*higher, *lower])):
            return None
        return paired_test(higher, lower, claim.factor)

    def main_verdict(self) -> str:
        """Return the verdict on the main claim: it holds if all of its parts hold, and not if one does not."""
        verdicts = [self.verdict(claim) for claim in self.table.claims if claim.main]
        known = [verdict for verdict in verdicts if verdict]
        if len(known) < len(verdicts):
            return NOT_MEASURED
        worst = min(known, key=lambda verdict: DECISIONS.index(verdict.decision))
        return worst.decision + (DIRECTION_ONLY if worst.p is None else "")


def read_section(table: Table, plan: Plan, output: Path, command: str) -> Section:
    """Read the results of a table; values of unfinished measurements are missing."""
    values: dict[tuple[str, str], list[float]] = {}
    results = []
    for row in table.rows:
        for column, (_, metric) in table.columns.items():
            found = [read_result(output, measurement) for measurement in plan.of_cell(table, row, column)]
            finished = [result for result in found if result]
            name = f"{row.part} {metric}" if row.part else metric
            complete = finished if len(finished) == len(found) else []  # pairs need the values of all seeds
            values[row.name, column] = [result["metrics"].get(name, math.nan) for result in complete]
            results += finished
    dates, machines = (sorted({result[key] for result in results}) for key in ("date", "machine"))
    return Section(table, values, dates, machines, command)


def write_document(path: Path, sections: Sequence[Section], protocol: Protocol) -> None:
    """Write the sections into a document; sections of other tables that it already has are kept.

    Raises:
        DataError: see :func:`read_document`.
    """
    new = {section.title: format_section(section, protocol) for section in sections}
    replaced = set(map(_position, new))
    old = {title: text for title, text in read_document(path).items() if _position(title) not in replaced}
    ordered = dict(sorted({**old, **new}.items(), key=lambda section: _position(section[0])))
    parts = (f"{_HEADING}{title}\n\n{text.strip()}\n" for title, text in ordered.items())
    write_bytes(path, "\n".join([_INTRODUCTION, format_summary(ordered), *parts]).encode())


def read_document(path: Path) -> dict[str, str]:
    """Return the sections of an existing document, title -> text.

    Raises:
        DataError: a heading is not that of a table.
    """
    if not path.exists():
        return {}
    _, *parts = re.split(rf"^{_HEADING}", path.read_text(), flags=re.MULTILINE)
    sections = {title: text for title, _, text in (part.partition("\n") for part in parts)}
    for title in sections:
        if not _TITLE.match(title):
            raise DataError(
                f'{path}: the section "{title}" is not that of a table, and would be lost; move it elsewhere'
            )
    return sections


def format_summary(sections: Mapping[str, str]) -> str:
    """Format the main verdict of each section, title -> text, and how many hold."""
    verdicts = {title: re.search(f"{_MAIN}(.*?)\\.", text) for title, text in sections.items()}
    lines = [[title, found[1] if found else NOT_MEASURED] for title, found in verdicts.items()]
    holding = sum(verdict == HOLDS for _, verdict in lines)
    directions = sum(verdict == HOLDS + DIRECTION_ONLY for _, verdict in lines)
    further = f", and in {directions} more in direction, without a test" if directions else ""
    table = tabulate(lines, ["", "main claim"], tablefmt="pipe", disable_numparse=True)
    return f"{table}\n\nThe main claim holds in {holding} of {len(lines)} sections{further}.\n"


def format_section(section: Section, protocol: Protocol) -> str:
    """Format a section without its heading."""
    table = section.table
    seeds = "1 seed" if protocol.seeds == 1 else f"{protocol.seeds} seeds"
    length = "half of the iterations (`--quick`)" if protocol.quick else "the iterations of the configs"
    when = [" to ".join(_ends(section.dates)), *section.machines]
    made = "; ".join([f"`{section.command}`, {seeds}, {length}", *when])
    one_seed = ["With one seed there is no test, and the verdicts are directions only."] if protocol.seeds == 1 else []
    return "\n\n".join(
        [
            f"{_MAIN}{section.main_verdict()}. The paper's figures: {table.setting}.",
            format_table(section),
            *one_seed,
            format_claims(section),
            *([table.note.strip()] if table.note else []),
            f"Made by {made}.",
        ]
    )


def format_table(section: Section) -> str:
    """Format ours and the paper's figures of each row, on alternate lines."""
    columns = list(section.table.columns)
    lines: list[list[str]] = []
    for row in section.table.rows:
        lines.append([row.name, *(_cell(section.values[row.name, column]) for column in columns)])
        if row.paper:
            lines.append(["*the paper's*", *(_paper_cell(row, column) for column in columns)])
    return tabulate(
        lines, ["", *columns], tablefmt="pipe", disable_numparse=True, colalign=["left", *["right"] * len(columns)]
    )


def format_claims(section: Section) -> str:
    """Format the verdict of each claim."""
    lines = []
    for claim in section.table.claims:
        verdict = section.verdict(claim)
        text = f"**{claim}**" if claim.main else str(claim)
        lines.append([text, "–" if verdict is None else f"{verdict.difference:+.2f}", str(verdict or NOT_MEASURED)])
    return tabulate(
        lines, ["claim (main ones bold)", "mean difference", "verdict"], tablefmt="pipe", disable_numparse=True
    )


def _cell(values: Sequence[float]) -> str:
    if not values or math.isnan(np.mean(values)):
        return "–"
    digits = _digits(float(np.mean(values)))
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def _paper_cell(row: Row, column: str) -> str:
    return f"{row.paper[column]:.{_digits(row.paper[column])}f}" if column in row.paper else ""


def _digits(value: float) -> int:
    """Return the digits after the point; values below 10, such as seconds, have two."""
    return 1 if abs(value) >= _ONE_DIGIT else 2


def _ends(dates: Sequence[str]) -> list[str]:
    return [dates[0], dates[-1]] if len(set(dates)) > 1 else list(dates[:1]) or [NOT_MEASURED]


def _position(title: str) -> tuple[bool, int]:
    """Return the sort key of a title such as "Table 3. Losses": tables by number, then figures."""
    name, number = title.partition(".")[0].split()
    return name == "Figure", int(number)
