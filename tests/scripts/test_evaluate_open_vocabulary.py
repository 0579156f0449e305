"""scripts/evaluate_open_vocabulary.py: one checkpoint, two datasets with different vocabularies, several κ."""

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
from samcp.commands.evaluate_open_vocabulary import _load as load
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
    """Folder of source.yaml and target.yaml, and of run/model.pth with the vocabulary of source.yaml."""
    root = tmp_path_factory.mktemp("open_vocabulary")
    name, weights = make_tiny_clip(root, "convnext")
    with (
        panoptic_dataset(root / "source", "ov_source", count=3),
        panoptic_dataset(root / "target", "ov_target", count=2, seed=5),
    ):
        (root / "words.txt").write_text("plate, dish\ntile\nair~\nmeadow~, grass\n")
        MetadataCatalog.get("ov_target").set(vocabulary=str(root / "words.txt"))
        for config, dataset in (("source", "source"), ("target", "target")):
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
                    "TRAIN": ["ov_source"],
                    "TEST": [f"ov_{dataset}"],
                    "PATCHES_TEST": [str(root / dataset / "patches")],
                },
            }
            (root / f"{config}.yaml").write_text(yaml.safe_dump(keys))
        cfg = load_config(
            default_argument_parser().parse_args(
                ["--config-file", str(root / "source.yaml"), "OUTPUT_DIR", str(root / "run")]
            )
        )
        torch.manual_seed(0)
        (root / "run").mkdir()
        Checkpointer(Trainer.build_model(cfg), cfg).save("model")
        yield root


def run(folder, output, *more):
    configs = [str(folder / "source.yaml"), str(folder / "target.yaml")]
    weights = str(folder / "run" / "model.pth")
    arguments = ["--weights", weights, "--configs", *configs, "--output", str(output), *more]
    return evaluate_all(script.parse_arguments(arguments))


def test_one_table_of_two_datasets(folder, tmp_path, capsys):
    results = run(folder, tmp_path)
    assert {"disc", "square"} == {key.removeprefix("AP-") for key in results["source"]["segm"] if "AP-" in key}
    for row in ("source", "target"):
        assert 0 <= results[row]["panoptic_seg"]["PQ"] <= 100
        assert results[row]["sem_seg"]["mIoU"] >= 0
    assert "IoU-plate" in results["target"]["sem_seg"]
    table = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["source", "target"]
    assert table[0].split("|")[2].strip() == "PQ"

    capsys.readouterr()
    run(folder, tmp_path)
    assert (tmp_path / "table.md").read_text().splitlines() == table
    assert "target: already evaluated" in capsys.readouterr().out
    run(folder, tmp_path, "--opts", "TEST.DETECTIONS_PER_IMAGE", "7")
    assert "already evaluated" not in capsys.readouterr().out, "other options need another evaluation"
    run(folder, tmp_path)
    assert capsys.readouterr().out.count("already evaluated") == 2, "results of the first options are kept"


def run_one(folder, output, config, *more):
    weights = str(folder / "run" / "model.pth")
    arguments = ["--weights", weights, "--configs", str(config), "--output", str(output), *more]
    return evaluate_all(script.parse_arguments(arguments))


def test_changed_config_is_evaluated_again(folder, tmp_path):
    keys = yaml.safe_load((folder / "source.yaml").read_text())
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(keys))
    first = run_one(folder, tmp_path, config)["mine"]
    keys["DATASETS"] = yaml.safe_load((folder / "target.yaml").read_text())["DATASETS"]
    config.write_text(yaml.safe_dump(keys))
    second = run_one(folder, tmp_path, config)["mine"]
    assert "IoU-plate" in second["sem_seg"]
    assert "IoU-plate" not in first["sem_seg"]


def test_changed_patches_or_words_are_evaluated_again(folder, tmp_path, capsys, monkeypatch):
    metadata = MetadataCatalog.get("ov_target")
    words = Path(metadata.vocabulary)
    keys = yaml.safe_load((folder / "target.yaml").read_text())
    keys["DATASETS"]["PATCHES_TEST"] = ["target/patches"]  # under DETECTRON2_DATASETS, as in the configs of datasets
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    config = tmp_path / "target.yaml"
    config.write_text(yaml.safe_dump(keys))
    run_one(folder, tmp_path, config)
    os.utime(folder / "target/patches/manifest.json", (0, 0))
    run_one(folder, tmp_path, config)
    assert "already evaluated" not in capsys.readouterr().out
    before = words.read_text()
    words.write_text(before.replace("dish", "saucer"))
    run_one(folder, tmp_path, config)
    assert "already evaluated" not in capsys.readouterr().out
    words.write_text(before)
    run_one(folder, tmp_path, config)
    assert "target: already evaluated" in capsys.readouterr().out


def test_several_datasets_in_one_config(folder, tmp_path):
    keys = yaml.safe_load((folder / "source.yaml").read_text())
    keys["DATASETS"]["TEST"].append("ov_target")
    keys["DATASETS"]["PATCHES_TEST"].append(str(folder / "target/patches"))
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(keys))
    results = run_one(folder, tmp_path / "both", tmp_path / "both.yaml")
    each = run(folder, tmp_path / "each")
    assert [*results] == ["both, ov_source", "both, ov_target"]
    assert len([*(tmp_path / "both").rglob("coco_instances_results.json")]) == 2
    assert [*results.values()] == [*each.values()]
    assert [*run_one(folder, tmp_path / "both", tmp_path / "both.yaml", "--kappa", "0")][
        1
    ] == "both, ov_target, kappa 0.0"


def test_things_evaluated_as_stuff_log_a_warning(folder, caplog):
    model = Trainer.build_model(
        load_config(default_argument_parser().parse_args(["--config-file", str(folder / "source.yaml")]))
    )
    with stuff_dataset("ov_semantic", ("disc", "grass")):
        for which, count in (("all", 0), ("stuff", 1)):
            model.semantic_queries = which
            with use_vocabulary_of("ov_semantic", model):
                pass
            assert sum("1 classes, such as disc, are stuff in ov_semantic" in m for m in caplog.messages) == count


@contextmanager
def stuff_dataset(name, classes):
    """Register a dataset with stuff classes only."""
    register(name, list, stuff_classes=list(classes), thing_classes=[], thing_dataset_id_to_contiguous_id={})
    yield
    unregister(name)


def test_rejects_configs_with_equal_names(folder, tmp_path):
    (tmp_path / "source.yaml").write_text((folder / "source.yaml").read_text())
    with pytest.raises(UsageError, match="duplicate row source"):
        run(folder, tmp_path / "out", "--configs", str(folder / "source.yaml"), str(tmp_path / "source.yaml"))


def test_damaged_results_are_computed_again(folder, tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"asked')
    assert "source" in run_one(folder, tmp_path, folder / "source.yaml")
    assert "results.json: cannot be read" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_kappa_requires_fusion_and_valid_values(folder, tmp_path):
    off = ("--kappa", "0.4", "--opts", "MODEL.SAMCP.OPEN_VOCABULARY.ENABLED", "False")
    with pytest.raises(UsageError, match="OPEN_VOCABULARY.ENABLED"):
        run_one(folder, tmp_path, folder / "source.yaml", *off)
    with pytest.raises(SystemExit):
        script.parse_arguments(["--weights", "w", "--configs", "c", "--output", "o", "--kappa", "1.5"])


def test_kappas_in_one_run_equal_separate_runs(folder, tmp_path):
    at_once = run(folder, tmp_path / "sweep", "--kappa", "0.4", "1")
    assert [*at_once][2:] == ["target, kappa 0.4", "target, kappa 1.0"]
    assert len([*(tmp_path / "sweep").rglob("coco_instances_results.json")]) == 4
    for kappa in ("0.4", "1.0"):
        keys = [f"MODEL.SAMCP.OPEN_VOCABULARY.{key}" for key in ("KAPPA", "KAPPA_UNSEEN")]
        single = run(folder, tmp_path / kappa, "--opts", keys[0], kappa, keys[1], kappa)
        for task, metrics in at_once[f"target, kappa {kappa}"].items():
            assert single["target"][task] == pytest.approx(metrics, nan_ok=True)


def test_table_contains_metrics_of_the_paper():
    results = {"coco_to_ade20k": {"panoptic_seg": {"PQ": 12.34}}, "mine": {"sem_seg": {"mIoU": 5.0}}}
    lines = make_table(results).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:3]] == ["coco_to_ade20k", "12.3"]
    assert [cell.strip() for cell in lines[3].split("|")[1:3]] == ["the paper's", "27.2"]
    assert len(lines) == 5


def test_strict_of_a_config_is_kept(folder, tmp_path):
    cases = [((), False), (("--strict",), True), (("--opts", "DATASETS.STRICT", "True"), True)]
    for options, strict in cases:
        arguments = ["--weights", "w", "--configs", str(folder / "target.yaml"), "--output", str(tmp_path), *options]
        arguments = script.parse_arguments(arguments)
        assert load(folder / "target.yaml", arguments).DATASETS.STRICT is strict
    keys = yaml.safe_load((folder / "target.yaml").read_text())
    keys["DATASETS"]["STRICT"] = True
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump(keys))
    arguments = ["--weights", "w", "--configs", str(tmp_path / "strict.yaml"), "--output", str(tmp_path)]
    assert load(tmp_path / "strict.yaml", script.parse_arguments(arguments)).DATASETS.STRICT


def test_missing_weights(folder, tmp_path):
    arguments = ["--weights", "gone.pth", "--configs", str(folder / "target.yaml"), "--output", str(tmp_path)]
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        evaluate_all(script.parse_arguments(arguments))
