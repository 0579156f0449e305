"""Definitions of the tables: all load, their overrides are real config keys, and their claims name rows and metrics."""

import dataclasses

import pytest
import yaml
from detectron2.data import DatasetCatalog

import samcp.data.datasets  # noqa: F401 registers the datasets
from samcp.config import parse_config
from samcp.errors import UsageError
from samcp.miniature.reproduce import plan
from samcp.miniature.reproduce.data import GENERATORS
from samcp.miniature.reproduce.plan import Plan, Protocol, training_config
from samcp.miniature.reproduce.tables import FOLDER, Claim, ablation_settings, load_table, table_names

NAMES = table_names()
SMALL = Protocol(seeds=1, quick=False)


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    monkeypatch.setattr(plan, "data_identity", lambda dataset, patches: f"{dataset} {patches}")


def test_the_twelve_tables_and_the_figure_exist_in_order():
    assert [*(f"table{i}" for i in range(1, 13)), "figure13"] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_table_has_known_datasets_generators_and_config_keys(name):
    table = load_table(name)
    for row in table.rows:
        assert all(dataset in DatasetCatalog for dataset in (*row.train, *table.datasets))
        assert all(part in GENERATORS for part in (*row.patches.split("+"), *row.test_patches.split("+")))
    Plan([table], SMALL)  # raises UsageError for a key that does not exist


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_table_differ(name):
    table = load_table(name)
    cells = Plan([table], SMALL).cells
    identities = {
        (row.part, tuple(m.identity for kind in table.kinds for m in cells[name, row.name, kind, table.datasets[0]]))
        for row in table.rows
    }
    assert len(identities) == len(table.rows)


def test_override_reaches_the_config_of_the_training():
    rows = {row.name: row for row in load_table("table3").rows}
    costs = training_config(rows["without Dice loss and cost"], 2, SMALL)
    assert (costs.MODEL.SAMCP.LOSS.DICE, costs.MODEL.SAMCP.MATCHER.DICE, costs.SEED) == (0, 0, 2)
    assert costs.DATASETS.PATCHES_TRAIN == ("patches/contours/miniature_train",)


def test_quick_training_has_half_of_the_iterations():
    row = load_table("table2").rows[0]
    full, quick = (training_config(row, 0, Protocol(1, quick)).SOLVER for quick in (False, True))
    assert quick.MAX_ITER == full.MAX_ITER // 2
    assert tuple(step // 2 for step in full.STEPS) == quick.STEPS


def test_ablation_inherits_the_keys_of_the_ablation_that_it_is_based_on():
    prefix = "MODEL.SAMCP.TARGETS."
    assert ablation_settings("table12/iop_0.9") == {
        f"{prefix}LOW_QUALITY_MATCHES": False,
        f"{prefix}IOP_THRESHOLD": 0.9,
    }


def test_tables_share_trainings():
    shared = Plan([load_table(name) for name in ("table2", "table3", "table4")], SMALL)
    trainings = {m.training.identity for cell in shared.cells.values() for m in cell if m.training}
    assert len(trainings) == 1 + 5 + 5


def test_rows_that_differ_in_evaluation_share_one_training():
    swept = Plan([load_table(name) for name in ("table6", "table8", "table11")], SMALL)
    assert len({m.training.identity for cell in swept.cells.values() for m in cell}) == 1
    parsed = parse_config(swept.cells["table8", "κ = 0.8", "evaluation", "miniature_open_val"][0].config)
    assert parsed.MODEL.SAMCP.OPEN_VOCABULARY.KAPPA == 0.8


def test_oracle_is_measured_once_for_all_seeds():
    seeds = Plan([load_table("table2")], Protocol(seeds=3, quick=False))
    counts = {row: len(cell) for (_, row, _, _), cell in seeds.cells.items()}
    assert counts["oracle"] == 1
    assert counts["SAM-CP"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claims": [{"column": "PQ", "higher": "typo", "lower": "all modules", "main": True}]}, "no rows typo"),
        ({"claims": [{"column": "IoU", "higher": "all modules", "lower": "all modules", "main": True}]}, "columns IoU"),
        ({"metrics": ["PQ", "quality"]}, "no metrics quality"),
        ({"claims": []}, "no main claim"),
        ({"author": "me"}, "author"),
    ],
)
def test_invalid_definition_is_rejected_by_the_name_of_its_file(change, message, tmp_path):
    content = yaml.safe_load((FOLDER / "table4.yaml").read_text())
    (tmp_path / "table4.yaml").write_text(yaml.safe_dump({**content, **change}))
    with pytest.raises(UsageError, match=rf"table4\.yaml: .*{message}"):
        load_table("table4", tmp_path)


def test_unknown_table_is_rejected_with_the_known_ones():
    with pytest.raises(UsageError, match="no table 'table13'; choose all or some of table1, table2"):
        load_table("table13")


def test_misspelt_config_key_is_rejected():
    table = load_table("table2")
    row = dataclasses.replace(table.rows[0], settings={"MODEL.SAMCP.MASK_ROY": False})
    with pytest.raises(UsageError, match=r"no config key MODEL\.SAMCP\.MASK_ROY"):
        Plan([dataclasses.replace(table, rows=(row,))], SMALL)


def test_claim_in_words():
    assert str(Claim("PQ", "full", "oracle", factor=0.85)) == "PQ: full > 0.85 × oracle"
