"""Finding a config by its path or by its name in the package."""

import pytest

from samcp.config_files import CONFIGS, find_config


@pytest.mark.parametrize("name", ["miniature/demo.yaml", "miniature/demo", "configs/miniature/demo.yaml"])
def test_name_of_a_packaged_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == str(CONFIGS / "miniature" / "demo.yaml")


def test_an_existing_file_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "miniature").mkdir()
    (tmp_path / "miniature" / "demo.yaml").write_text("VERSION: 2\n")
    assert find_config("miniature/demo.yaml") == "miniature/demo.yaml"


def test_unknown_name_suggests_similar_ones():
    with pytest.raises(FileNotFoundError, match=r"'coco/panoptic/samcp_R50_13ep': .* coco/panoptic/samcp_R50_12ep"):
        find_config("coco/panoptic/samcp_R50_13ep")


def test_path_outside_the_packaged_configs_is_not_found():
    with pytest.raises(FileNotFoundError):
        find_config("../../../configs/miniature/gone.yaml")
