"""The notebook docs/tour.ipynb runs and prints the text that it was committed with."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).resolve().parent.parent / "docs" / "tour.ipynb"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(TOUR, as_version=4)


def outputs(notebook):
    """Return the outputs of all cells: texts, and "picture" for each picture."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [_text(output) for output in found]


def _text(output):
    data = output.get("data", {})
    return "picture" if "image/jpeg" in data else output.get("text") or data["text/plain"]


def test_committed_outputs_have_all_pictures_and_fit_in_1_mb(committed):
    assert outputs(committed).count("picture") == sum("show(" in cell.source for cell in committed.cells) - 1 >= 8
    assert TOUR.stat().st_size <= 2**20


def test_cells_run_and_print_what_is_committed(committed, tmp_path):
    client = NotebookClient(copy.deepcopy(committed), timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    executed = client.execute()  # raises CellExecutionError with the traceback of a cell that fails

    advice = "the tour has other outputs; if they are right: jupyter execute --inplace docs/tour.ipynb"
    assert [NUMBER.sub("#", text) for text in outputs(executed)] == [
        NUMBER.sub("#", text) for text in outputs(committed)
    ], advice
    for new, old in zip(outputs(executed), outputs(committed), strict=True):
        # Scores and areas may differ a little between processors.
        numbers = [float(number) for number in NUMBER.findall(old)]
        assert [float(number) for number in NUMBER.findall(new)] == pytest.approx(numbers, rel=0.1, abs=0.02), advice
