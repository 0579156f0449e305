"""Each kind of measurement, of a model that trains for two iterations."""

import math

import pytest

from samcp.miniature.reproduce import data, measure
from samcp.miniature.reproduce.jobs import Job, read_result, training_folder
from samcp.miniature.reproduce.plan import Plan, Protocol
from samcp.miniature.reproduce.tables import METRICS, Row, Table

ROW = {
    "config": "miniature/panoptic.yaml",
    "train": ("synthetic_train",),
    "patches": "sam",
    "test_patches": "sam",
    "settings": {"SOLVER.MAX_ITER": 2},
}


@pytest.fixture
def root(synthetic, tmp_path, monkeypatch):
    """Folder of datasets and results, with the patches of the contour generator under the name of SAM."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(data, "GENERATORS", {"sam": ("contours", {"parts": 60, "patches": 60})})
    monkeypatch.setattr(measure, "_TIMED_IMAGES", 1)
    folder = tmp_path / "patches" / "sam"
    folder.mkdir(parents=True)
    for split, cache in (("train", synthetic.train_patches), ("val", synthetic.val_patches)):
        (folder / f"synthetic_{split}").symlink_to(cache)
    return tmp_path


def jobs(root, rows, kinds):
    table = Table("table0", "", "", kinds, ("synthetic_val",), ("PQ",), rows, (), "")
    return Plan([table], Protocol(1, False)).jobs(root)


def run(job: Job, root):
    if job.training:
        measure.train(job.training, root)
    results = []
    for measurement in job.measurements:
        measure.measure(measurement, root)
        results.append(read_result(root, measurement)["metrics"])
    return results


def test_model_baselines_time_and_silhouette_share_a_training(root):
    rows = (Row("model", **ROW), Row("baseline", evaluation={"MODEL.SAMCP.TEST.BASELINE": "components"}, **ROW))
    evaluated, timed = jobs(root, rows, ("evaluation", "silhouette", "time"))
    model, separation, baseline = run(evaluated, root)[:3]
    assert {"PQ", "AP", "mIoU"} <= model.keys() & baseline.keys()
    assert {"backbone classes", "patch encoder instances"} <= separation.keys()
    checkpoint = training_folder(root, evaluated.training) / "model_final.pth"
    written = checkpoint.stat().st_mtime_ns
    [seconds] = run(Job(timed.measurements[:1]), root)
    assert checkpoint.stat().st_mtime_ns == written  # not trained again
    assert seconds.keys() == set(METRICS["time"])
    assert math.isclose(seconds["total s"], seconds["SAM s"] + seconds["other s"])


def test_oracle_and_patches_need_no_training(root):
    oracle = Row("oracle", evaluation={"TEST.ORACLE": True}, **ROW)
    [job] = jobs(root, (oracle,), ("evaluation",))
    assert job.training is None
    [quality] = run(job, root)
    assert quality["PQ"] > 80
    [job] = jobs(root, (Row("SAM", part="merged", **ROW),), ("patches",))
    [quality] = run(job, root)
    assert quality["merged mIoU"] >= 80
    assert quality["best_patch MR 0.25"] <= quality["best_patch MR 0.75"]


def test_other_annotations_are_other_data(root, synthetic):
    identity = data.data_identity("synthetic_val", "sam")
    assert data.data_identity("synthetic_train", "sam") != identity


def test_patches_of_two_generators_are_merged(root, monkeypatch):
    few = {"few": ("contours", {"parts": 10, "patches": 12})}
    monkeypatch.setattr(data, "GENERATORS", {**data.GENERATORS, **few})
    data.make_patches([("synthetic_val", "sam+few")], workers=0)
    merged, alone = (data.PatchCache(root / "patches" / name / "synthetic_val") for name in ("sam+few", "sam"))
    key = next(iter(alone))
    assert len(merged[key]) == len(alone[key]) + 12
    assert data.data_identity("synthetic_val", "sam+few") != data.data_identity("synthetic_val", "sam")
