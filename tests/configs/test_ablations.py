"""Ablation configs: each changes the keys that it is named after, and no others."""

import re
from functools import cache
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from samcp import add_samcp_config
from samcp.config_overrides import merge_overrides

CONFIGS = Path(__file__).parents[2] / "configs"
ABLATED = CONFIGS / "coco" / "panoptic" / "samcp_R50_12ep.yaml"


@cache
def load(path):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def flat(cfg, prefix=""):
    """Return all values by their full keys."""
    values = {}
    for key, value in cfg.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return values


def names(folder):
    return sorted(str(path.relative_to(CONFIGS)) for path in folder.rglob("*.yaml"))


EXPECTED = {
    "table3/without_mask_focal": {"LOSS.MASK_FOCAL": 0, "MATCHER.MASK_FOCAL": 0},
    "table3/without_dice": {"LOSS.DICE": 0, "MATCHER.DICE": 0},
    "table3/matching_without_mask_focal": {"MATCHER.MASK_FOCAL": 0},
    "table3/matching_without_dice": {"MATCHER.DICE": 0},
    "table3/matching_without_box": {"MATCHER.L1": 0, "MATCHER.GIOU": 0},
    "table4/without_dca": {"DCA_MASK": False},
    "table4/without_affinity_refinement": {"AFFINITY_REFINEMENT": False},
    "table4/without_mask_roi": {"MASK_ROI": False},
    "table4/without_query_enhancement": {"QUERY_ENHANCEMENT": False},
    "table4/without_self_affinity": {"SELF_AFFINITY": False},
    "table5/without_patch_encoder": {"ENC_LAYERS": 0},
    "table5/image_level": {"DCA": "image"},
    "table12/iop_0.9": {"TARGETS.IOP_THRESHOLD": 0.9, "TARGETS.LOW_QUALITY_MATCHES": False},
    "table12/iop_0.8": {"TARGETS.LOW_QUALITY_MATCHES": False},
    "table12/iop_0.7": {"TARGETS.IOP_THRESHOLD": 0.7, "TARGETS.LOW_QUALITY_MATCHES": False},
    "table12/iop_0.5": {"TARGETS.IOP_THRESHOLD": 0.5, "TARGETS.LOW_QUALITY_MATCHES": False},
    "table12/without_box_iop": {"TARGETS.BOX_IOP": False, "TARGETS.LOW_QUALITY_MATCHES": False},
    "table12/without_mask_iop": {"TARGETS.MASK_IOP": False, "TARGETS.LOW_QUALITY_MATCHES": False},
}


def test_every_ablation_config_is_expected():
    assert names(CONFIGS / "ablations") == sorted(f"ablations/{row}.yaml" for row in EXPECTED)


@pytest.mark.parametrize("row", EXPECTED)
def test_ablation_changes_expected_keys_only(row):
    base, ablation = flat(load(ABLATED)), flat(load(CONFIGS / "ablations" / f"{row}.yaml"))
    changed = {key: value for key, value in ablation.items() if value != base[key]}
    assert changed.pop("OUTPUT_DIR") == f"output/ablations/{row}"
    assert changed == {f"MODEL.SAMCP.{key}": value for key, value in EXPECTED[row].items()}


def test_open_domain_rows_of_model_zoo_equal_ablation_configs():
    zoo = (CONFIGS.parent / "MODEL_ZOO.md").read_text()
    rows = dict(re.findall(r"^    row (\w+) (.+)$", zoo, re.MULTILINE))
    closed = {row.partition("/")[2]: keys for row, keys in EXPECTED.items() if row.startswith(("table3", "table4"))}
    assert rows.keys() == closed.keys()
    for config in ("coco", "coco_to_ade20k"):
        base = load(CONFIGS / "open_vocabulary" / f"{config}.yaml")
        for row, keys in rows.items():
            ablation = base.clone()
            merge_overrides(ablation, keys.split())
            changed = {k: v for k, v in flat(ablation).items() if v != flat(base)[k]}
            assert changed == {f"MODEL.SAMCP.{key}": value for key, value in closed[row].items()}
