"""Each kind of measurement, of a model that trains for two iterations."""

import argparse
import math
import signal

import pytest

from proposal_cache import ContourGenerator
from proposal_cache.errors import LockedError
from proposal_cache.store.lock import rank_lock
from samcp.commands import reproduce
from samcp.miniature.reproduce import data, measure
from samcp.miniature.reproduce.jobs import Job, read_result, training_folder
from samcp.miniature.reproduce.plan import Plan, Protocol
from samcp.miniature.reproduce.tables import METRICS, Row, Table

ROW = {
    "config": "miniature/panoptic.yaml",
    "train": ("synthetic_train",),
    "patches": "contours",
    "test_patches": "contours",
    "settings": {"SOLVER.MAX_ITER": 2},
}


@pytest.fixture
def root(synthetic, tmp_path, monkeypatch):
    """Folder of datasets and results."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setitem(data.GENERATORS, "contours", (ContourGenerator, {"parts": 60, "patches": 60}))
    monkeypatch.setattr(measure, "_TIMED_IMAGES", 1)
    folder = tmp_path / "patches" / "contours"
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
    assert math.isclose(seconds["total s"], seconds["patches s"] + seconds["other s"])


def test_training_in_progress_is_left_alone(root):
    """Also if the command that started it was killed, which does not end it."""
    [job] = jobs(root, (Row("model", **ROW),), ("evaluation",))
    folder = training_folder(root, job.training)
    folder.mkdir(parents=True)
    with rank_lock(folder, 0), pytest.raises(LockedError, match="is being written by"):
        measure.train(job.training, root)
    assert [path.name for path in folder.iterdir()] == [".lock-r000"]


def test_one_command_per_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the command's, for its own process
    arguments = argparse.Namespace(tables=["table9"], seeds=1, quick=True, document=None, output=tmp_path, workers=1)
    with rank_lock(tmp_path, 0), pytest.raises(SystemExit, match=f"{tmp_path} is being written by"):
        reproduce.main(arguments)


def test_oracle_and_patches_need_no_training(root):
    oracle = Row("oracle", evaluation={"TEST.ORACLE": True}, **ROW)
    [job] = jobs(root, (oracle,), ("evaluation",))
    assert job.training is None
    [quality] = run(job, root)
    assert quality["PQ"] > 80
    [job] = jobs(root, (Row("patches", part="merged", **ROW),), ("patches",))
    [quality] = run(job, root)
    assert quality["merged mIoU"] >= 80
    assert quality["best_patch MR 0.25"] <= quality["best_patch MR 0.75"]


def test_other_annotations_are_other_data(root):
    assert data.data_identity("synthetic_train", "contours") != data.data_identity("synthetic_val", "contours")


def test_patches_of_two_generators_are_merged(root):
    both = "contours+graph_regions"
    data.make_patches([("synthetic_val", "graph_regions"), ("synthetic_val", both)], workers=0)
    caches = [data.PatchCache(root / "patches" / name / "synthetic_val") for name in both.split("+")]
    merged = data.PatchCache(root / "patches" / both / "synthetic_val")
    for key, patches in merged.items():
        assert len(patches) == sum(len(cache[key]) for cache in caches)
    assert data.data_identity("synthetic_val", both) != data.data_identity("synthetic_val", "contours")
