"""One checkpoint, two datasets with different words, one table; and several κ in one run."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser

from samcp.checkpoint import Checkpointer
from samcp.commands.evaluate_open_vocabulary import evaluate_all, make_table
from samcp.config import load_config
from samcp.data.datasets.catalog import register, unregister
from samcp.errors import CheckpointError, UsageError
from samcp.trainer import Trainer, use_vocabulary_of
from tests.tiny_clip import make_tiny_clip
from tests.toy_datasets import panoptic_dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import evaluate_open_vocabulary as script

BASE = Path(__file__).parents[2] / "configs" / "_base_" / "samcp_CLIP.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Configs at_home.yaml and abroad.yaml, and model.pth, trained on the words of the first."""
    root = tmp_path_factory.mktemp("open_vocabulary")
    name, weights = make_tiny_clip(root, "convnext")
    with (
        panoptic_dataset(root / "home", "ov_home", count=3),
        panoptic_dataset(root / "abroad", "ov_abroad", count=2, seed=5),
    ):
        (root / "words.txt").write_text("plate, dish\ntile\nair~\nmeadow~, grass\n")
        MetadataCatalog.get("ov_abroad").set(vocabulary=str(root / "words.txt"))
        for config, dataset in (("at_home", "home"), ("abroad", "abroad")):
            keys = {
                "_BASE_": str(BASE),
                "MODEL": {
                    "DEVICE": "cpu",
                    "CLIP": {"NAME": name, "PRETRAINED": weights},
                    "SAMCP": {"ROI_FC_DIM": 32, "FFN_DIM": 32, "TEST": {"SCORE_THRESHOLD": 0.0}},
                },
                "INPUT": {"MIN_SIZE_TEST": 64},
                "DATALOADER": {"NUM_WORKERS": 0},
                "DATASETS": {
                    "TRAIN": ["ov_home"],
                    "TEST": [f"ov_{dataset}"],
                    "PATCHES_TEST": [str(root / dataset / "patches")],
                },
            }
            (root / f"{config}.yaml").write_text(yaml.safe_dump(keys))
        cfg = load_config(
            default_argument_parser().parse_args(
                ["--config-file", str(root / "at_home.yaml"), "OUTPUT_DIR", str(root / "run")]
            )
        )
        torch.manual_seed(0)
        (root / "run").mkdir()
        Checkpointer(Trainer.build_model(cfg), cfg).save("model")
        yield root


def run(folder, output, *more):
    configs = [str(folder / "at_home.yaml"), str(folder / "abroad.yaml")]
    weights = str(folder / "run" / "model.pth")
    arguments = ["--weights", weights, "--configs", *configs, "--output", str(output), *more]
    return evaluate_all(script.parse_arguments(arguments))


def test_one_table_of_two_datasets(folder, tmp_path, capsys):
    results = run(folder, tmp_path)
    assert {"disc", "square"} == {key.removeprefix("AP-") for key in results["at_home"]["segm"] if "AP-" in key}
    for row in ("at_home", "abroad"):
        assert 0 <= results[row]["panoptic_seg"]["PQ"] <= 100
        assert results[row]["sem_seg"]["mIoU"] >= 0
    assert "IoU-plate" in results["abroad"]["sem_seg"]
    table = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["at_home", "abroad"]
    assert table[0].split("|")[2].strip() == "PQ"

    capsys.readouterr()
    run(folder, tmp_path)
    assert (tmp_path / "table.md").read_text().splitlines() == table
    assert "abroad: already evaluated" in capsys.readouterr().out
    run(folder, tmp_path, "--opts", "TEST.DETECTIONS_PER_IMAGE", "7")
    assert "already evaluated" not in capsys.readouterr().out, "other options are another evaluation"
    run(folder, tmp_path)
    assert capsys.readouterr().out.count("already evaluated") == 2, "and lose nothing of the first"


def alone(folder, output, config, *more):
    weights = str(folder / "run" / "model.pth")
    arguments = ["--weights", weights, "--configs", str(config), "--output", str(output), *more]
    return evaluate_all(script.parse_arguments(arguments))


def test_a_config_that_was_changed_is_evaluated_again(folder, tmp_path):
    keys = yaml.safe_load((folder / "at_home.yaml").read_text())
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(keys))
    first = alone(folder, tmp_path, config)["mine"]
    keys["DATASETS"] = yaml.safe_load((folder / "abroad.yaml").read_text())["DATASETS"]
    config.write_text(yaml.safe_dump(keys))
    second = alone(folder, tmp_path, config)["mine"]
    assert "IoU-plate" in second["sem_seg"]
    assert "IoU-plate" not in first["sem_seg"]


def test_other_patches_or_words_are_another_evaluation(folder, tmp_path, capsys):
    metadata = MetadataCatalog.get("ov_abroad")
    words = Path(metadata.vocabulary)
    config = folder / "abroad.yaml"
    alone(folder, tmp_path, config)
    os.utime(folder / "abroad/patches/manifest.json", (0, 0))
    alone(folder, tmp_path, config)
    assert "already evaluated" not in capsys.readouterr().out
    before = words.read_text()
    words.write_text(before.replace("dish", "saucer"))
    alone(folder, tmp_path, config)
    assert "already evaluated" not in capsys.readouterr().out
    words.write_text(before)
    alone(folder, tmp_path, config)
    assert "abroad: already evaluated" in capsys.readouterr().out


def test_several_datasets_in_one_config(folder, tmp_path):
    keys = yaml.safe_load((folder / "at_home.yaml").read_text())
    keys["DATASETS"]["TEST"].append("ov_abroad")
    keys["DATASETS"]["PATCHES_TEST"].append(str(folder / "abroad/patches"))
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(keys))
    results = alone(folder, tmp_path / "both", tmp_path / "both.yaml")
    each = run(folder, tmp_path / "each")
    assert [*results] == ["both, ov_home", "both, ov_abroad"]
    assert [*results.values()] == [*each.values()]
    assert [*alone(folder, tmp_path / "both", tmp_path / "both.yaml", "--kappa", "0")][
        1
    ] == "both, ov_abroad, kappa 0.0"


def test_things_evaluated_as_stuff_log_a_warning(folder, caplog):
    model = Trainer.build_model(
        load_config(default_argument_parser().parse_args(["--config-file", str(folder / "at_home.yaml")]))
    )
    with unlabelled("ov_semantic", ("disc", "grass")):
        for which, count in (("all", 0), ("stuff", 1)):
            model.semantic_queries = which
            with use_vocabulary_of("ov_semantic", model):
                pass
            assert sum("1 classes, such as disc, are stuff in ov_semantic" in m for m in caplog.messages) == count


@contextmanager
def unlabelled(name, classes):
    """A dataset of stuff."""
    register(name, list, stuff_classes=list(classes), thing_classes=[], thing_dataset_id_to_contiguous_id={})
    yield
    unregister(name)


def test_two_configs_of_one_name_are_refused(folder, tmp_path):
    (tmp_path / "at_home.yaml").write_text((folder / "at_home.yaml").read_text())
    with pytest.raises(UsageError, match="duplicate row at_home"):
        run(folder, tmp_path / "out", "--configs", str(folder / "at_home.yaml"), str(tmp_path / "at_home.yaml"))


def test_results_that_cannot_be_read_are_made_again(folder, tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"asked')
    assert "at_home" in alone(folder, tmp_path, folder / "at_home.yaml")
    assert "results.json: cannot be read" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_kappa_needs_something_to_join(folder, tmp_path):
    off = ("--kappa", "0.4", "--opts", "MODEL.SAMCP.OPEN_VOCABULARY.ENABLED", "False")
    with pytest.raises(UsageError, match="OPEN_VOCABULARY.ENABLED"):
        alone(folder, tmp_path, folder / "at_home.yaml", *off)
    with pytest.raises(SystemExit):
        script.parse_arguments(["--weights", "w", "--configs", "c", "--output", "o", "--kappa", "1.5"])


def test_all_kappas_in_one_run_are_those_of_a_run_each(folder, tmp_path):
    at_once = run(folder, tmp_path / "sweep", "--kappa", "0.4", "1")
    assert [*at_once][2:] == ["abroad, kappa 0.4", "abroad, kappa 1.0"]
    for kappa in ("0.4", "1.0"):
        keys = [f"MODEL.SAMCP.OPEN_VOCABULARY.{key}" for key in ("KAPPA", "KAPPA_UNSEEN")]
        single = run(folder, tmp_path / kappa, "--opts", keys[0], kappa, keys[1], kappa)
        for task, figures in at_once[f"abroad, kappa {kappa}"].items():
            assert single["abroad"][task] == pytest.approx(figures, nan_ok=True)


def test_the_papers_figures_stand_below_ours():
    results = {"coco_to_ade20k": {"panoptic_seg": {"PQ": 12.34}}, "mine": {"sem_seg": {"mIoU": 5.0}}}
    lines = make_table(results).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:3]] == ["coco_to_ade20k", "12.3"]
    assert [cell.strip() for cell in lines[3].split("|")[1:3]] == ["the paper's", "27.2"]
    assert len(lines) == 5


def test_no_weights(folder, tmp_path):
    arguments = ["--weights", "gone.pth", "--configs", str(folder / "abroad.yaml"), "--output", str(tmp_path)]
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        evaluate_all(script.parse_arguments(arguments))
