"""Lookup of configs by path or by packaged name."""

import pytest

from samcp.config_files import CONFIGS, find_config


@pytest.mark.parametrize("name", ["miniature/demo.yaml", "miniature/demo", "configs/miniature/demo.yaml"])
def test_name_of_a_packaged_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == str(CONFIGS / "miniature" / "demo.yaml")


def test_name_with_a_dot_and_no_suffix():
    assert find_config("ablations/table12/iop_0.5") == str(CONFIGS / "ablations" / "table12" / "iop_0.5.yaml")


def test_an_existing_file_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "miniature").mkdir()
    (tmp_path / "miniature" / "demo.yaml").write_text("VERSION: 2\n")
    assert find_config("miniature/demo.yaml") == "miniature/demo.yaml"


def test_unknown_name_suggests_similar_ones():
    with pytest.raises(FileNotFoundError, match=r"'coco/panoptic/samcp_R50_13ep': .* coco/panoptic/samcp_R50_12ep"):
        find_config("coco/panoptic/samcp_R50_13ep")


@pytest.mark.parametrize("name", ["", "../../../configs/miniature/gone.yaml"])
def test_path_that_does_not_exist(name):
    with pytest.raises(FileNotFoundError, match="no such file or packaged config"):
        find_config(name)
