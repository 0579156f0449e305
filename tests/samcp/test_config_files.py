"""Lookup of configs by path or by packaged name."""

import re

import pytest
import yaml

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


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def test_the_config_that_a_training_writes_can_be_used(tmp_path):
    """It has null values and aliases."""
    written = load_config(training_parser("").parse_args(["--config-file", "configs/miniature/panoptic"]))
    (tmp_path / "config.yaml").write_text(written.dump())
    again = load_config(training_parser("").parse_args(["--config-file", str(tmp_path / "config.yaml")]))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(written.dump())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("VERSION: !!python/object/apply:os.system ['touch ran']", "own.yaml: cannot .*python/object/apply:os.system"),
        ("_BASE_: unsafe.yaml", "unsafe.yaml: cannot .*python/object/apply:os.system"),
        ("_BASE_: own.yaml", "own.yaml: is based on itself"),
        ("_BASE_: [unsafe.yaml]", "unsafe.yaml: cannot"),
        ("_BASE_: 7", "_BASE_ is 7, which is not the name of a file"),
        ("MODEL:", "own.yaml: MODEL is None, but must be a section with keys"),
        ("MODEL: {SAMCP: }", "own.yaml: MODEL.SAMCP is None, but must be a section"),
        ("MODEL: 7", "own.yaml: MODEL is 7, but must be"),
        ("7: x", "own.yaml: the key 7 is not text"),
        (BOMB, "own.yaml: its aliases .* expand to more than 100000 values"),
        ("a: &a [*a]", "own.yaml: its aliases .* expand to more than 100000 values"),
        ("a: &a {b: 1}\nc: {<<: *a}", "own.yaml: cannot .*merge keys"),
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
