"""Lookup of configs by path or by packaged name."""

import re

import pytest

from samcp.command_line import training_parser
from samcp.config import load_config
from samcp.config_files import CONFIGS, find_config
from samcp.errors import UsageError


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("VERSION: !!python/object/apply:os.system ['touch ran']", "own.yaml: cannot .*python/object/apply:os.system"),
        ("_BASE_: unsafe.yaml", "unsafe.yaml: cannot .*python/object/apply:os.system"),
        ("_BASE_: own.yaml", "own.yaml: is based on itself"),
        ("_BASE_: [unsafe.yaml]", "unsafe.yaml: cannot"),
        ("_BASE_: 7", "_BASE_ is 7, which is not the name of a file"),
        ("MODEL:", "own.yaml: the key MODEL has no value"),
        ("MODEL: {SAMCP: }", "own.yaml: the key MODEL.SAMCP has no value"),
        ("MODEL: 7", "own.yaml"),
        ("7: x", "own.yaml: the key 7 is not text"),
        ("a: &a [x]\nb: *a", "own.yaml: cannot .*aliases"),
        ("a: " + "[" * 1000, "own.yaml: cannot be read as yaml"),
        ("a: 2001-99-99", "own.yaml: cannot be read as yaml"),
        ("\ud800", "own.yaml: cannot be read as yaml"),
    ],
)
def test_unsafe_and_invalid_configs_are_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unsafe.yaml").write_text("a: !!python/object/apply:os.system ['touch ran']")
    (tmp_path / "own.yaml").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UsageError, match=re.compile(message, re.DOTALL)):
        load_config(training_parser("").parse_args(["--config-file", "own.yaml"]))
    assert not (tmp_path / "ran").exists()
