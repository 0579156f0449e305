"""Document of fake results."""

import dataclasses

import pytest

from samcp.errors import DataError
from samcp.miniature.reproduce.document import Section, format_section, write_document
from samcp.miniature.reproduce.plan import Protocol
from samcp.miniature.reproduce.tables import Claim, Row, Table

DATA = {"config": "", "train": (), "patches": "", "test_patches": ""}
FULL = Protocol(seeds=3, quick=False)


def section(name="table3", full=(50, 51, 52), ablated=(40, 40, 40)):
    rows = (Row("full", paper={"PQ": 47.0}, **DATA), Row("ablated", **DATA))
    claims = (Claim("PQ", "full", "ablated", main=True), Claim("PQ", "full", "ablated", factor=2))
    table = Table(name, "Losses", "COCO", ("evaluation",), ("val",), ("PQ",), rows, claims, "It may fail here.")
    values = {("full", "PQ"): full, ("ablated", "PQ"): ablated}
    return Section(table, values, ["2026-11-29"], ["laptop"], f"python scripts/reproduce.py {name} --seeds 3")


def cells(text, row):
    [line] = [line for line in text.splitlines() if line.startswith(f"| {row} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ours_and_the_papers_figures_and_verdicts():
    text = format_section(section(), FULL)
    assert cells(text, "full") == ["full", "51.0 ± 1.0"]
    assert cells(text, r"*the paper's*") == ["*the paper's*", "47.0"]
    assert cells(text, "**PQ: full > ablated**")[1:] == ["+11.00", "holds (p = 0.001)"]
    assert cells(text, "PQ: full > 2 × ablated")[1:] == ["-29.00", "does not hold (p < 0.001)"]
    assert text.startswith("Main claim: holds. ")
    assert "It may fail here." in text


def test_command_date_and_machine():
    last = format_section(section(), FULL).splitlines()[-1]
    for expected in ("python scripts/reproduce.py table3 --seeds 3", "3 seeds", "2026-11-29", "laptop"):
        assert expected in last


def test_one_seed_is_said_to_be_a_direction_only():
    text = format_section(section(full=(50,), ablated=(40,)), Protocol(seeds=1, quick=True))
    assert cells(text, "full") == ["full", "50.0"]
    assert "With one seed there is no test" in text
    assert "holds (direction only)" in text
    assert "--quick" in text


def test_missing_results_are_not_judged():
    text = format_section(section(ablated=()), FULL)
    assert cells(text, "ablated") == ["ablated", "–"]
    assert text.startswith("Main claim: not measured. ")


@pytest.mark.parametrize(("ablated", "verdict"), [((51, 50, 53), "undecided"), ((60, 60, 60), "does not hold")])
def test_main_verdict(ablated, verdict):
    assert section(ablated=ablated).main_verdict() == verdict


def test_sections_of_other_tables_are_kept_and_summarized(tmp_path):
    path = tmp_path / "docs" / "miniature.md"
    write_document(path, [section("table12"), section("table3"), section("figure13")], FULL)
    write_document(path, [section("table3", full=(30, 31, 32))], FULL)
    text = path.read_text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Table 3. Losses", "## Table 12. Losses", "## Figure 13. Losses"]
    assert cells(text, "Table 3. Losses") == ["Table 3. Losses", "does not hold"]
    assert "The main claim holds in 2 of 3 sections." in text
    before = path.read_text()
    write_document(path, [], FULL)
    assert path.read_text() == before


def test_section_is_replaced_under_another_title(tmp_path):
    path = tmp_path / "miniature.md"
    old = section()
    write_document(path, [old], FULL)
    write_document(path, [dataclasses.replace(old, table=dataclasses.replace(old.table, title="Loss terms"))], FULL)
    assert [line for line in path.read_text().splitlines() if line.startswith("## ")] == ["## Table 3. Loss terms"]


def test_section_that_is_not_of_a_table_is_an_error(tmp_path):
    path = tmp_path / "miniature.md"
    path.write_text("# The paper\n\n## Discussion\n\nHow nice.\n")
    with pytest.raises(DataError, match='miniature.md: the section "Discussion" is not that of a table'):
        write_document(path, [section()], FULL)
    assert "How nice." in path.read_text()


def test_directions_are_counted_apart(tmp_path):
    path = tmp_path / "miniature.md"
    one_seed = section("table4", full=(50,), ablated=(40,))
    write_document(path, [section(), one_seed], FULL)
    assert "The main claim holds in 1 of 2 sections, and in 1 more in direction, without a test." in path.read_text()
