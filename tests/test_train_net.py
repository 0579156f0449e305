"""Command line of training and evaluation, with a toy dataset and a small model."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog

from samcp.command_line import training_parser
from samcp.commands import train
from samcp.config import load_config
from samcp.data.datasets.catalog import register, unregister
from samcp.data.datasets.synthetic.prepare import make_synthetic_dataset
from samcp.data.ground_truth import read_panoptic_ids
from samcp.errors import UsageError
from tests.toy_datasets import panoptic_dataset, split_segments, write_patches

CONFIG = "configs/miniature/panoptic.yaml"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    with panoptic_dataset(root, "toy_train_net", count=4):
        yield root


@contextmanager
def toy_copy(name, **metadata):
    """Register the toy dataset under another name with modified metadata."""
    toy = {k: v for k, v in MetadataCatalog.get("toy_train_net").as_dict().items() if k != "name"}
    register(name, lambda: DatasetCatalog.get("toy_train_net"), **{**toy, **metadata})
    try:
        yield
    finally:
        unregister(name)


def two_test_datasets(toy, name):
    """Return overrides that evaluate on the toy dataset and on the dataset `name`."""
    patches = str(toy / "patches")
    return {"DATASETS__TEST": ("toy_train_net", name), "DATASETS__PATCHES_TEST": (patches, patches)}


def arguments(toy, output, *options, **overrides):
    """Return the parsed arguments of a command that trains and tests on the toy dataset."""
    settings = {
        "DATASETS.TRAIN": "('toy_train_net',)",
        "DATASETS.TEST": "('toy_train_net',)",
        "DATASETS.PATCHES_TRAIN": f"('{toy / 'patches'}',)",
        "DATASETS.PATCHES_TEST": f"('{toy / 'patches'}',)",
        "OUTPUT_DIR": str(output),
        "SOLVER.MAX_ITER": "2",
        "SEED": "1",
        "TEST.REPORT": "False",
        **{key.replace("__", "."): str(value) for key, value in overrides.items()},
    }
    flat = [part for item in settings.items() for part in item]
    return training_parser(None).parse_args(["--config-file", CONFIG, *options, *flat])


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """Return the output folder of a training of two iterations, and its final metrics."""
    output = tmp_path_factory.mktemp("run")
    train.main(arguments(toy, output))
    lines = (output / "metrics.json").read_text().splitlines()
    return output, json.loads(lines[-1])


def test_training_writes_checkpoint_and_metrics(trained):
    output, metrics = trained
    assert (output / "model_final.pth").is_file()
    for metric in ("panoptic_seg/PQ", "segm/AP", "bbox/AP", "sem_seg/mIoU"):
        assert metric in metrics
    assert all(torch.isfinite(torch.tensor(v)) for k, v in metrics.items() if "loss" in k)


def test_training_writes_events_for_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # not in the GPU check's bundle

    output, metrics = trained
    [events] = output.glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert {"total_loss", "lr", "panoptic_seg/PQ"} <= set(accumulator.Tags()["scalars"])
    assert accumulator.Scalars("panoptic_seg/PQ")[-1].value == pytest.approx(metrics["panoptic_seg/PQ"])


def test_folder_that_cannot_be_created(toy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"OUTPUT_DIR .*file/run cannot be created: Not a directory"):
        train.run(arguments(toy, tmp_path / "file" / "run"))


def test_training_ends_with_a_report(toy, tmp_path):
    """The page has results with the oracle beside, curves, the best and worst images, data and config."""
    train.main(arguments(toy, tmp_path, TEST__REPORT=True))
    page = (tmp_path / "report.html").read_text()
    for heading in ("Results", "Curves", "Worst of the first 4 images", "Best of the first 4 images", "Data", "Config"):
        assert f"<h2>{heading}" in page
    results = re.search(r"model</th><th[^>]*>oracle.*?<tbody>(.*?)</tbody>", page, re.DOTALL).group(1)
    rows = re.findall(r"<th scope=\"row\">(.*?)</th><td>(.*?)</td><td>(.*?)</td>", results)
    assert {name: oracle for name, _, oracle in rows}["AP"] == "100.0"
    assert page.count("<img") == 2 + 4 * 4, "two plots; image, patches, prediction and truth of four images"
    sources = re.findall(r'src="([^"]*)"', page)
    assert all(source.startswith("data:image/webp;base64,") for source in sources), "one file without others"
    assert "MAX_ITER: 2" in page


def test_results_of_the_oracle_do_not_replace_those_of_the_model(toy, trained, tmp_path):
    """The report evaluates the oracle after the model, in the same OUTPUT_DIR."""
    train.main(arguments(toy, tmp_path, TEST__REPORT=True))
    alone, with_oracle = (folder / "inference/coco_instances_results.json" for folder in (trained[0], tmp_path))
    assert with_oracle.read_bytes() == alone.read_bytes()
    oracle = json.loads((tmp_path / "inference/oracle/coco_instances_results.json").read_text())
    assert {instance["score"] for instance in oracle} == {1.0}


def test_eval_only_equals_evaluation_after_training(toy, trained, tmp_path):
    output, metrics = trained
    results = train.run(arguments(toy, tmp_path, "--eval-only", MODEL__WEIGHTS=output / "model_final.pth"))
    assert results["sem_seg"]["mIoU"] == pytest.approx(metrics["sem_seg/mIoU"])
    assert results["panoptic_seg"]["PQ"] == pytest.approx(metrics["panoptic_seg/PQ"])


def test_evaluation_with_classes_in_another_order(toy, trained, tmp_path):
    """Evaluate the same images with the classes in reverse order."""
    output, metrics = trained
    metadata, weights = MetadataCatalog.get("toy_train_net").as_dict(), output / "model_final.pth"
    names = metadata["stuff_classes"]
    last = len(names) - 1
    for key in ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"):
        metadata[key] = {i: last - c for i, c in metadata[key].items()}
    metadata |= {"thing_classes": names[::-1], "stuff_classes": names[::-1]}
    metadata.pop("name")
    records = [
        {**r, "segments_info": [{**s, "category_id": last - s["category_id"]} for s in r["segments_info"]]}
        for r in DatasetCatalog.get("toy_train_net")
    ]
    register("toy_reversed", lambda: records, **metadata)
    only = {"DATASETS__TRAIN": "()", "DATASETS__PATCHES_TRAIN": "()", "DATASETS__TEST": "('toy_reversed',)"}
    results = train.run(arguments(toy, tmp_path, "--eval-only", MODEL__WEIGHTS=weights, **only))
    unregister("toy_reversed")
    found = {name: results["sem_seg"][f"IoU-{name}"] for name in names}
    assert found == pytest.approx({name: metrics[f"sem_seg/IoU-{name}"] for name in names})
    assert len(set(found.values())) > 1, "otherwise mixed-up classes would not be detected"


def test_training_without_test_datasets(toy, tmp_path):
    train.main(arguments(toy, tmp_path, DATASETS__TEST="()", DATASETS__PATCHES_TEST="()"))
    assert (tmp_path / "model_final.pth").is_file()


def test_resume_continues_at_last_iteration(toy, tmp_path):
    train.main(arguments(toy, tmp_path, SOLVER__MAX_ITER=2))
    train.main(arguments(toy, tmp_path, "--resume", SOLVER__MAX_ITER=4))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [1, 3]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 3


def test_resumed_training_equals_an_undisturbed_one(toy, tmp_path):
    """Data order, augmentations, denoising, optimizer and schedule continue, although no seed is given."""
    options = {
        "SEED": -1,
        "SOLVER__MAX_ITER": 6,
        "SOLVER__CHECKPOINT_PERIOD": 3,
        "DATALOADER__NUM_WORKERS": 2,
        "INPUT__CROP__ENABLED": True,
        "INPUT__COLOR_AUG_SSD": True,
        "DATASETS__TEST": "()",
        "DATASETS__PATCHES_TEST": "()",
    }
    train.main(arguments(toy, tmp_path / "whole", **options))
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000002.pth", tmp_path / "resumed")
    (tmp_path / "resumed" / "last_checkpoint").write_text("model_0000002.pth")
    train.main(arguments(toy, tmp_path / "resumed", "--resume", **options))
    whole, resumed = (torch.load(tmp_path / run / "model_final.pth", weights_only=True) for run in ("whole", "resumed"))
    assert all(torch.equal(whole["model"][name], tensor) for name, tensor in resumed["model"].items())


def test_resume_rejects_config_with_other_trained_parameters(toy, tmp_path):
    train.main(arguments(toy, tmp_path))
    with pytest.raises(SystemExit, match=r"cannot be resumed with this config"):
        train.main(arguments(toy, tmp_path, "--resume", MODEL__BACKBONE__FREEZE_AT=5, SOLVER__MAX_ITER=3))


def test_resume_rejects_other_classes(toy, tmp_path):
    train.main(arguments(toy, tmp_path))
    classes = ["square", "disc", "sky", "grass"]
    with toy_copy("toy_swapped", stuff_classes=classes, thing_classes=classes):
        other = {"DATASETS__TRAIN": ("toy_swapped",), "SOLVER__MAX_ITER": 4}
        refused = r"model_final.pth: trained on other classes .* class 1 was 'disc' \(thing\) of 4 and is 'square'"
        with pytest.raises(SystemExit, match=refused):
            train.main(arguments(toy, tmp_path, "--resume", **other))
        weights = tmp_path / "model_final.pth"
        train.main(arguments(toy, tmp_path / "new", MODEL__WEIGHTS=weights, **other))


def test_oracle_needs_no_checkpoint(toy, tmp_path):
    """The cache contains every segment; only the crowd of discs, which is never predicted, lowers the IoU."""
    results = train.run(arguments(toy, tmp_path, "--eval-only", TEST__ORACLE=True))
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["panoptic_seg"]["PQ_th"] == pytest.approx(100)
    assert results["panoptic_seg"]["PQ_st"] == pytest.approx(100)
    assert results["sem_seg"]["IoU-grass"] == pytest.approx(100)
    assert results["sem_seg"]["IoU-disc"] < 100


def test_logs_one_table_of_metrics(toy, tmp_path, caplog):
    log = logging.getLogger("samcp")
    log.addHandler(caplog.handler)
    train.run(arguments(toy, tmp_path, "--eval-only", TEST__ORACLE=True))
    log.removeHandler(caplog.handler)
    table = next(m for m in caplog.messages if m.startswith("Results of"))
    assert "oracle" in table.splitlines()[0]
    assert [c.strip() for c in table.splitlines()[1].strip("|").split("|")][1:] == [
        "PQ", "PQ_th", "PQ_st", "SQ", "RQ", "AP", "AP50", "AP75", "AP box", "mIoU",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        ((), {"DATASETS__PATCHES_TRAIN": "()"}, r"PATCHES_TRAIN names 0 patch caches"),
        (
            (),
            {"DATASETS__PATCHES_TEST": "('nowhere',)"},
            r"nowhere: no patch cache; make it with: python scripts/generate",
        ),
        ((), {"DATASETS__TRAIN": "('imaginary',)"}, r"there is no dataset 'imaginary'"),
        ((), {"DATASETS__TEST": "('imaginary',)", "DATASETS__PATCHES_TEST": "()"}, r"there is no dataset 'imaginary'"),
        ((), {"MODEL__WEIGHTS": "gone.pth"}, r"gone.pth: not found"),
        ((), {"SOLVER__MAXITER": "1"}, r"there is no config key SOLVER.MAXITER; did you mean SOLVER.MAX_ITER"),
        (("SEED", "1", "--eval-only"), {}, r"--eval-only is after the config key SEED; options go before the first"),
        ((), {"TEST__ORACLE": True}, r"--eval-only"),
        ((), {"MODEL__SAMCP__SEMANTIC_QUERIES": "things"}, r"SEMANTIC_QUERIES is 'things'; choose"),
        ((), {"MODEL__SAMCP__TEXT__ENCODER": "foo"}, r"TEXT.ENCODER is 'foo'; choose"),
        ((), {"MODEL__SAMCP__OPEN_VOCABULARY__ENABLED": True}, r"needs CLIP for images and for words"),
        ((), {"MODEL__TIMM__NAME": "nope"}, r"MODEL.TIMM: name is 'nope'"),
        ((), {f"MODEL__SAMCP__TEST__{task}_ON": False for task in ("SEMANTIC", "INSTANCE", "PANOPTIC")}, r"nothing to"),
        ((), {"MODEL__SAMCP__TEST__MERGE": "Max"}, r"TEST.MERGE is 'Max'; choose"),
        ((), {"MODEL__SAMCP__DEC_LAYERS": 0}, r"DEC_LAYERS is 0"),
        ((), {"MODEL__SAMCP__HIDDEN_DIM": 30}, r"HIDDEN_DIM \(30\) is not a multiple of MODEL.SAMCP.NHEADS"),
        (
            (),
            {"MODEL__SAMCP__OPEN_VOCABULARY__KAPPA": 1.5},
            r"OPEN_VOCABULARY.KAPPA is 1.5; it must be between 0 and 1",
        ),
        ((), {"MODEL__SAMCP__IN_FEATURES": "['p9']"}, r"IN_FEATURES.*p9"),
        ((), {"SOLVER__AMP__ENABLED": True}, r"SOLVER.AMP.ENABLED needs a GPU"),
        (("--eval-only",), {}, r"no checkpoint to evaluate: add MODEL.WEIGHTS FILE"),
        (("--eval-only",), {"MODEL__WEIGHTS": "gone.pth", "DATASETS__TRAIN": "('imaginary',)"}, r"gone.pth: not found"),
        (("--eval-only",), {"MODEL__WEIGHTS": CONFIG}, r"panoptic.yaml: not a checkpoint"),
    ],
)
def test_user_errors_are_one_line(toy, tmp_path, options, overrides, message):
    with pytest.raises(SystemExit, match=rf"error: .*{message}") as stop:
        train.main(arguments(toy, tmp_path, *options, **overrides))
    assert "Traceback" not in str(stop.value)
    assert not (tmp_path / "model_final.pth").exists(), "must be reported before training"


class TestEvaluationIsCheckedBeforeTraining:
    """Files and classes that the final evaluation needs are checked before training starts."""

    def test_missing_instance_json(self, tmp_path):
        with panoptic_dataset(tmp_path / "data", "toy_train_net"):
            (tmp_path / "data" / "instances.json").unlink()
            with pytest.raises(SystemExit, match=r"error: \S*instances.json: the json is missing"):
                train.main(arguments(tmp_path / "data", tmp_path))
        assert not (tmp_path / "model_final.pth").exists()

    def test_test_dataset_with_classes_that_are_not_learned(self, toy, tmp_path):
        classes = ["disc", "square", "sky", "lawn"]
        message = r"toy_lawn cannot be evaluated: this model has not learned 'lawn'"
        view = toy_copy("toy_lawn", stuff_classes=classes, thing_classes=classes)
        with view, pytest.raises(SystemExit, match=message):
            train.main(arguments(toy, tmp_path, **two_test_datasets(toy, "toy_lawn")))
        assert not (tmp_path / "model_final.pth").exists()


def test_evaluation_checks_all_datasets_first(toy, trained, tmp_path):
    weights = trained[0] / "model_final.pth"
    classes = ["disc", "square", "sky", "lawn"]
    with toy_copy("toy_lawn", stuff_classes=classes, thing_classes=classes):
        options = arguments(toy, tmp_path, "--eval-only", MODEL__WEIGHTS=weights, **two_test_datasets(toy, "toy_lawn"))
        with pytest.raises(SystemExit, match=r"toy_lawn cannot be evaluated"):
            train.main(options)
    with toy_copy("toy_gone", json_file=str(tmp_path / "gone.json")):
        options = arguments(toy, tmp_path, "--eval-only", MODEL__WEIGHTS=weights, **two_test_datasets(toy, "toy_gone"))
        with pytest.raises(SystemExit, match=r"gone.json: the json is missing.*INSTANCE_ON False"):
            train.main(options)
    assert not list(tmp_path.rglob("coco_instances_results.json")), "no dataset may be evaluated"


def test_results_are_written_per_dataset(toy, tmp_path):
    with toy_copy("toy_twin"):
        overrides = {"TEST__ORACLE": True, **two_test_datasets(toy, "toy_twin")}
        results = train.run(arguments(toy, tmp_path / "two", "--eval-only", **overrides))
    assert list(results) == ["toy_train_net", "toy_twin"]
    train.run(arguments(toy, tmp_path / "one", "--eval-only", TEST__ORACLE=True))
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("coco_instances_results.json")}
    assert written == {
        "two/inference/oracle/toy_train_net/coco_instances_results.json",
        "two/inference/oracle/toy_twin/coco_instances_results.json",
        "one/inference/oracle/coco_instances_results.json",
    }


def test_evaluation_needs_no_pretrained_weights(toy, trained, tmp_path):
    output, metrics = trained
    missing = {"MODEL__TIMM__WEIGHTS": "gone.pth", "MODEL__WEIGHTS": output / "model_final.pth"}
    results = train.run(arguments(toy, tmp_path, "--eval-only", **missing))
    assert results["panoptic_seg"]["PQ"] == pytest.approx(metrics["panoptic_seg/PQ"])


def test_float_keys_accept_integers(toy, tmp_path):
    cfg = load_config(arguments(toy, tmp_path, MODEL__SAMCP__OPEN_VOCABULARY__KAPPA=1, SOLVER__BASE_LR="1"))
    assert (cfg.MODEL.SAMCP.OPEN_VOCABULARY.KAPPA, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (1.0, 1.0, 2)


def test_cuda_without_gpu(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"MODEL.DEVICE is cuda, but PyTorch sees no GPU here; add: MODEL.DEVICE cpu"):
        train.main(arguments(toy, tmp_path, MODEL__DEVICE="cuda"))


def test_rejects_checkpoint_with_more_layers(toy, trained, tmp_path):
    larger = {"MODEL__WEIGHTS": trained[0] / "model_final.pth", "MODEL__SAMCP__DEC_LAYERS": 1}
    with pytest.raises(SystemExit, match=r"not a checkpoint of this config's model: .* tensors unexpected"):
        train.main(arguments(toy, tmp_path, "--eval-only", **larger))


def test_rejects_checkpoint_with_fewer_layers(toy, trained, tmp_path):
    output, _ = trained
    weights = output / "model_final.pth"
    with pytest.raises(SystemExit, match=r"model_final.pth: not a checkpoint of this config's model"):
        train.main(arguments(toy, tmp_path, "--eval-only", MODEL__WEIGHTS=weights, MODEL__SAMCP__DEC_LAYERS=3))


def test_unreadable_image_in_worker_process_is_one_line(tmp_path):
    """DataLoader wraps the error of a worker process in a traceback."""
    with panoptic_dataset(tmp_path / "data", "toy_train_net"):
        (tmp_path / "data" / "images" / "001.jpg").write_bytes(b"no picture")
        options = {"TEST__ORACLE": True, "DATALOADER__NUM_WORKERS": 1}
        with pytest.raises(SystemExit, match=r"^error: \S*001.jpg: the image cannot be read") as stop:
            train.main(arguments(tmp_path / "data", tmp_path / "run", "--eval-only", **options))
    assert "Traceback" not in str(stop.value)


def test_two_processes(tmp_path):
    """Run the command with two CPU processes and a dataset that both can register."""
    datasets = tmp_path / "datasets"
    make_synthetic_dataset(datasets / "synthetic", num_train=4, num_val=2)
    for split, count in (("train", 4), ("val", 2)):
        images = sorted((datasets / "synthetic" / split).glob("*.jpg"))
        assert len(images) == count
        masks = {i.stem: datasets / "synthetic" / f"panoptic_{split}" / f"{i.stem}.png" for i in images}
        patches = {key: split_segments(read_panoptic_ids(str(path))) for key, path in masks.items()}
        write_patches(datasets / f"patches_{split}", f"synthetic_{split}", patches)
    settings = {
        "DATASETS.TRAIN": "('synthetic_train',)",
        "DATASETS.TEST": "('synthetic_val',)",
        "DATASETS.PATCHES_TRAIN": "('patches_train',)",
        "DATASETS.PATCHES_TEST": "('patches_val',)",
        "SOLVER.MAX_ITER": "2",
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    options = ["--num-gpus", "2", "--dist-url", "auto", "--config-file", "miniature/panoptic"]
    script = [sys.executable, train_net.__file__, *options]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*script, *(part for item in settings.items() for part in item)], env=environment, check=True)
    last = json.loads((tmp_path / "run" / "metrics.json").read_text().splitlines()[-1])
    assert "panoptic_seg/PQ" in last
