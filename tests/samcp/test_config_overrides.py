"""Errors of config files and of keys on the command line, in the user's terms."""

import pytest
from detectron2.config import get_cfg

from samcp import add_samcp_config
from samcp.command_line import training_parser
from samcp.config import load_config
from samcp.config_overrides import merge_file, merge_overrides
from samcp.errors import UsageError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_samcp_config(cfg)
    return cfg


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        # A list without the quotes and the comma of Python's syntax.
        ("DATASETS.TRAIN beach_train", "write: DATASETS.TRAIN \"('beach_train',)\""),
        ("DATASETS.TRAIN (beach_train,)", "write: DATASETS.TRAIN \"('beach_train',)\""),
        ("DATASETS.TEST [a,'b']", "write: DATASETS.TEST \"('a', 'b')\""),
        ("SOLVER.STEPS 100", 'write: SOLVER.STEPS "(100,)"'),
        # Misspelt keys, also of another section.
        ("SOLVER.MAXITER 3", "there is no config key SOLVER.MAXITER; did you mean SOLVER.MAX_ITER"),
        ("solver.max_iter 3", "there is no config key solver.max_iter; did you mean SOLVER.MAX_ITER"),
        ("MODEL.SAMPC.NHEADS 4", "there is no config key MODEL.SAMPC.NHEADS; did you mean MODEL.SAMCP.NHEADS"),
        ("TEST.PROMPTS_ON True", "did you mean MODEL.SAMCP.TEST.PROMPTS_ON"),
        ("XYZZY 1", "there is no config key XYZZY; all keys are in samcp/config.py"),
        # Values of the wrong type.
        ("SOLVER.MAX_ITER many", "SOLVER.MAX_ITER is 'many'; it must be a whole number, such as 40000"),
        ("SOLVER.BASE_LR fast", "SOLVER.BASE_LR is 'fast'; it must be a number, such as 0.001"),
        ("TEST.ORACLE true", "TEST.ORACLE is 'true'; it must be True or False, such as False"),
        ("SOLVER.AMP True", "SOLVER.AMP is a section; set one of its keys: SOLVER.AMP.ENABLED"),
        ("SOLVER.MAX_ITER", "SOLVER.MAX_ITER has no value; write config keys as KEY VALUE"),
        ("SEED 1 --resume --eval-only", "--resume is after the config key SEED; options go before the first key"),
    ],
)
def test_messages(cfg, opts, message):
    with pytest.raises(UsageError) as error:
        merge_overrides(cfg, opts.split(" "))
    assert message in str(error.value)
    assert "<class" not in str(error.value)


def test_whole_number_for_a_float_key(cfg):
    merge_overrides(cfg, ["SOLVER.BASE_LR", "1", "SOLVER.MAX_ITER", "2"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (1.0, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: {MAXITER: 3}", r"my\.yaml: there is no config key SOLVER\.MAXITER; did you mean SOLVER\.MAX_ITER"),
        ("DATASETS: {TRAIN: beach}", r"my\.yaml: DATASETS\.TRAIN is 'beach'; it must be a list; write"),
        ("SOLVER: [", r"my\.yaml: cannot be read as yaml \(line 1: expected the node content"),
    ],
)
def test_config_file(cfg, tmp_path, text, message):
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        merge_file(cfg, str(tmp_path / "my.yaml"))
    assert "\n" not in str(error.value)
    assert str(error.value).count("my.yaml") == 1


def test_misspelt_config_file_is_named_once():
    with pytest.raises(UsageError) as error:
        load_config(training_parser(None).parse_args(["--config-file", "miniature/demmo"]))
    assert str(error.value).startswith(
        "--config-file 'miniature/demmo': no such file or packaged config; similar: mini"
    )


def test_config_file_is_required(capsys):
    with pytest.raises(SystemExit):
        training_parser(None).parse_args([])
    assert "the following arguments are required: --config-file" in capsys.readouterr().err


def test_missing_base_of_a_config_file(cfg, tmp_path):
    (tmp_path / "my.yaml").write_text("_BASE_: gone.yaml\n")
    with pytest.raises(UsageError, match=r"my\.yaml: \S*gone\.yaml: cannot be read as yaml \(No such file"):
        merge_file(cfg, str(tmp_path / "my.yaml"))
