"""Evaluators: 100 for the ground truth, and values computed by hand for known errors."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from PIL import Image

from proposal_cache import Patches
from samcp import add_samcp_config
from samcp.data.ground_truth import read_panoptic_ids
from samcp.errors import DataError
from samcp.evaluation import build_evaluator, format_results
from samcp.evaluation.panoptic import PanopticEvaluator
from samcp.evaluation.semantic import SemanticEvaluator
from tests.perfect_model import instances_of, perfect_outputs
from tests.scripts.dataset_faults import edit
from tests.toy_datasets import SIZE, panoptic_dataset


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with panoptic_dataset(tmp_path_factory.mktemp("toy"), "toy_evaluation", patches=False) as name:
        yield name


def evaluate(evaluator, name, change=lambda record, outputs: outputs):
    """Evaluate the ground truth modified by `change`."""
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [change(record, perfect_outputs(record, name))])
    return evaluator.evaluate()


def config(tmp_path):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def test_ground_truth_scores_100(toy, tmp_path):
    results = evaluate(build_evaluator(config(tmp_path), toy), toy)
    metrics = {
        "panoptic_seg": ["PQ", "SQ", "RQ", "PQ_th", "PQ_st"],
        "segm": ["AP", "AP50"],
        "bbox": ["AP"],
        "sem_seg": ["mIoU", "fwIoU", "mACC", "pACC"],
    }
    for task, names in metrics.items():
        for name in names:
            assert results[task][name] == pytest.approx(100), (task, name)


def test_only_enabled_tasks_are_evaluated(toy, tmp_path):
    cfg = config(tmp_path)
    cfg.MODEL.SAMCP.TEST.INSTANCE_ON = cfg.MODEL.SAMCP.TEST.PANOPTIC_ON = False
    assert set(evaluate(build_evaluator(cfg, toy), toy)) == {"sem_seg"}
    cfg.MODEL.SAMCP.TEST.SEMANTIC_ON = False
    with pytest.raises(ValueError, match=r"nothing to evaluate on 'toy_evaluation'.*coco_panoptic_seg"):
        build_evaluator(cfg, toy)


class TestSemantic:
    def test_iou_of_a_class_that_is_half_mislabeled(self, toy):
        """Every second column of grass (3) is predicted as sky (2)."""
        records = DatasetCatalog.get(toy)
        truth = [perfect_outputs(record, toy)["sem_seg"].numpy() for record in records]
        swapped = [np.where((t == 3) & (np.arange(SIZE[1]) % 2 == 0), 2, t) for t in truth]
        expected = []
        for c in range(4):
            intersection = sum(((t == c) & (p == c)).sum() for t, p in zip(truth, swapped, strict=True))
            union = sum((((t == c) | (p == c)) & (t >= 0)).sum() for t, p in zip(truth, swapped, strict=True))
            expected.append(100 * intersection / union)
        outputs = iter(swapped)
        results = evaluate(SemanticEvaluator(toy), toy, lambda record, _: {"sem_seg": torch.from_numpy(next(outputs))})[
            "sem_seg"
        ]
        assert [results[f"IoU-{name}"] for name in ("disc", "square", "sky", "grass")] == pytest.approx(expected)
        assert results["mIoU"] == pytest.approx(np.mean(expected))
        assert 40 < expected[3] < 60

    def test_unlabeled_pixels_count_as_errors(self, toy):
        """Half of the sky is not predicted, which halves its IoU and accuracy."""

        def unlabeled(record, outputs):
            labels = outputs["sem_seg"].clone()
            labels[:, ::2] = torch.where(labels[:, ::2] == 2, -1, labels[:, ::2])
            return {"sem_seg": labels}

        results = evaluate(SemanticEvaluator(toy), toy, unlabeled)["sem_seg"]
        assert results["IoU-sky"] == pytest.approx(50, abs=3)
        assert results["ACC-sky"] == pytest.approx(50, abs=3)
        assert results["IoU-grass"] == pytest.approx(100)

    def test_scores_equal_labels(self, toy):
        """Scores (C, H, W) may replace labels; a pixel without a positive score is unlabeled."""

        def scores(record, outputs):
            labels = outputs["sem_seg"]
            return {"sem_seg": torch.stack([(labels == c).float() for c in range(4)])}

        assert evaluate(SemanticEvaluator(toy), toy, scores)["sem_seg"]["mIoU"] == pytest.approx(100)

    def test_equals_detectron2_if_every_pixel_is_predicted(self, tmp_path):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 5, (3, *SIZE)).astype(np.uint8)
        truth[truth == 4] = 255
        truth[truth == 2] = 1  # class 2 is in no image
        records = []
        for i, labels in enumerate(truth):
            path = tmp_path / f"{i}.png"
            Image.fromarray(labels).save(path)
            records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(path)})
        DatasetCatalog.register("toy_labels", lambda: records)
        MetadataCatalog.get("toy_labels").set(stuff_classes=["a", "b", "c", "d"], ignore_label=255)
        try:
            ours, theirs = SemanticEvaluator("toy_labels"), SemSegEvaluator("toy_labels")
            ours.reset()
            theirs.reset()
            for record in records:
                labels = torch.from_numpy(rng.integers(0, 4, SIZE))
                scores = torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()
                ours.process([record], [{"sem_seg": labels}])
                theirs.process([record], [{"sem_seg": scores}])
            found, expected = ours.evaluate(), theirs.evaluate()
        finally:
            DatasetCatalog.remove("toy_labels")
            MetadataCatalog.remove("toy_labels")
        assert found is not None
        for name, value in found["sem_seg"].items():
            assert value == pytest.approx(expected["sem_seg"][name], nan_ok=True), name
        assert math.isnan(found["sem_seg"]["IoU-c"])


class TestInstances:
    def test_missing_objects_lower_the_recall(self, toy, tmp_path):
        """If squares are not predicted, their AP is 0 and the AP of discs is unchanged."""

        def without_squares(record, outputs):
            instances = outputs["instances"]
            return {**outputs, "instances": instances[instances.pred_classes == 0]}

        results = evaluate(build_evaluator(config(tmp_path), toy), toy, without_squares)
        for task in ("segm", "bbox"):
            assert results[task]["AP-disc"] == pytest.approx(100)
            assert results[task]["AP-square"] == pytest.approx(0)
            assert results[task]["AP"] == pytest.approx(50)

    def test_equals_detectron2_on_decoded_masks(self, tmp_path):
        """Detectron2's evaluator requires metadata with the names of things only."""
        rng = np.random.default_rng(0)

        def noisy(record, outputs):
            masks = outputs["instances"].pred_masks.tensor.numpy() & (rng.random(SIZE) < 0.8)
            classes = outputs["instances"].pred_classes
            return {**outputs, "instances": instances_of(Patches.from_masks(masks), classes, rng.random(len(masks)))}

        with panoptic_dataset(tmp_path / "data", "toy_instances", patches=False) as name:
            metadata = MetadataCatalog.get(name)
            cfg = config(tmp_path)
            cfg.MODEL.SAMCP.TEST.SEMANTIC_ON = cfg.MODEL.SAMCP.TEST.PANOPTIC_ON = False
            ours = evaluate(build_evaluator(cfg, name), name, noisy)
            rng = np.random.default_rng(0)
            MetadataCatalog.remove(name)
            things = {**metadata.as_dict(), "thing_classes": metadata.thing_classes[:2]}
            MetadataCatalog.get(name).set(**things)
            theirs = evaluate(COCOEvaluator(name, ("bbox", "segm"), output_dir=str(tmp_path)), name, noisy)
        assert ours["segm"] == pytest.approx(theirs["segm"], nan_ok=True)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], nan_ok=True)
        assert 10 < ours["segm"]["AP"] < 90

    @pytest.mark.parametrize("content", [None, b"{half a json"])
    def test_unreadable_json(self, tmp_path, content):
        with panoptic_dataset(tmp_path, "toy_instances", patches=False) as name:
            (tmp_path / "instances.json").unlink()
            if content:
                (tmp_path / "instances.json").write_bytes(content)
            with pytest.raises(DataError, match=r"instances.json: .*INSTANCE_ON False"):
                build_evaluator(config(tmp_path), name)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a: a["segmentation"].update(counts=a["segmentation"]["counts"][:-1]), "invalid segmentation: "),
            (lambda a: a.update(segmentation=[[0, 0, 1e9, 0, 1e9, 9]]), "polygon coordinate 1000000000.0"),
            (lambda a: a.update(segmentation=[[0, 0, float("nan"), 0, 9, 9]]), "polygon coordinate nan"),
            (lambda a: a.update(bbox=[0, 0, 9]), r"has the bbox \[0, 0, 9\]"),
            (lambda a: a.update(area="9"), "has the area '9'"),
            (lambda a: a.update(area=10**400), "has the area 10000"),
            (lambda a: a.pop("area"), "has no area"),
            (lambda a: a.update(id=[]), "has no id"),
            (lambda a: a.pop("iscrowd"), "has no iscrowd"),
            (lambda a: a.update(image_id=99), "has the image_id 99, which is not in its images"),
        ],
    )
    def test_invalid_annotations_are_rejected_before_pycocotools_reads_them(self, tmp_path, change, message):
        """pycocotools hangs on the first, crashes on the second, and raises a KeyError after the last image."""
        with panoptic_dataset(tmp_path, "toy_instances", patches=False) as name:
            edit(tmp_path / "instances.json", lambda content: change(content["annotations"][1]))
            with pytest.raises(DataError, match=f"instances.json: annotation (number )?2 .*{message}"):
                build_evaluator(config(tmp_path), name)

    def test_polygons_of_two_points_are_ignored(self, tmp_path):
        """pycocotools takes the first one, and all behind it, for boxes."""
        with panoptic_dataset(tmp_path, "toy_instances", patches=False) as name:
            first = json.loads((tmp_path / "instances.json").read_text())["annotations"][0]
            x, y, w, h = first["bbox"]
            box = [x, y, x + w, y, x + w, y + h, x, y + h]

            def change(content):
                content["annotations"][0]["segmentation"] = [[0, 0, 40, 40], box]

            edit(tmp_path / "instances.json", change)
            truth = build_evaluator(config(tmp_path), name)._evaluators[1]._coco_api
            assert mask_util.area(truth.annToRLE(truth.anns[1])) == w * h

    def test_annotation_ids_do_not_change_the_result(self, tmp_path):
        """COCOeval takes a match with the annotation 0 for no match."""
        with panoptic_dataset(tmp_path, "toy_instances", patches=False) as name:
            edit(
                tmp_path / "instances.json", lambda content: [a.update(id=a["id"] - 1) for a in content["annotations"]]
            )
            results = evaluate(build_evaluator(config(tmp_path), name), name)
        assert results["segm"]["AP"] == pytest.approx(100)

    def test_no_predicted_instances(self, toy, tmp_path):
        results = evaluate(
            build_evaluator(config(tmp_path), toy),
            toy,
            lambda _, outputs: {**outputs, "instances": outputs["instances"][:0]},
        )
        assert math.isnan(results["segm"]["AP"])


class TestPanoptic:
    def test_swapped_stuff_classes(self, toy, tmp_path):
        """Swapping sky and grass sets PQ of stuff to 0 and does not change PQ of things."""

        def swapped(record, outputs):
            ids, info = outputs["panoptic_seg"]
            other = {2: 3, 3: 2}
            info = [{**s, "category_id": other.get(s["category_id"], s["category_id"])} for s in info]
            return {**outputs, "panoptic_seg": (ids, info)}

        results = evaluate(PanopticEvaluator(toy), toy, swapped)["panoptic_seg"]
        assert results["PQ_th"] == pytest.approx(100)
        assert results["PQ_st"] == pytest.approx(0)
        assert results["PQ"] == pytest.approx(50)
        assert [results[f"PQ-{name}"] for name in ("sky", "grass")] == [0, 0]

    def test_dataset_without_stuff(self, tmp_path):
        """panopticapi itself raises ZeroDivisionError here."""
        with panoptic_dataset(tmp_path / "data", "toy_things", patches=False, things_only=True) as name:
            results = evaluate(PanopticEvaluator(name), name)["panoptic_seg"]
        assert results["PQ"] == results["PQ_th"] == pytest.approx(100)
        assert math.isnan(results["PQ_st"])

    def test_only_id_0_is_void(self, tmp_path):
        """A segment predicted on an id that the json does not list is a false positive, as in panopticapi."""
        sky = 1  # its id in the PNGs
        with panoptic_dataset(tmp_path / "data", "toy_unlisted", patches=False) as name:
            listed = tmp_path / "data" / "panoptic.json"
            content = json.loads(listed.read_text())
            for annotation in content["annotations"]:
                annotation["segments_info"] = [s for s in annotation["segments_info"] if s["id"] != sky]
            listed.write_text(json.dumps(content))

            def with_sky(record, outputs):
                ids, info = outputs["panoptic_seg"]
                ids[torch.from_numpy(read_panoptic_ids(record["pan_seg_file_name"]) == sky)] = sky
                return {**outputs, "panoptic_seg": (ids, [*info, {"id": sky, "category_id": 2, "isthing": False}])}

            evaluator = PanopticEvaluator(name)
            assert evaluate(evaluator, name)["panoptic_seg"]["PQ_st"] == pytest.approx(100)
            assert evaluate(evaluator, name, with_sky)["panoptic_seg"]["PQ_st"] == pytest.approx(50)

    def test_wrong_area_in_the_json_does_not_change_the_result(self, tmp_path):
        with panoptic_dataset(tmp_path, "toy_areas", patches=False) as name:
            edit(tmp_path / "panoptic.json", lambda c: c["annotations"][0]["segments_info"][0].update(area=10**6))
            results = evaluate(PanopticEvaluator(name), name)
        assert results["panoptic_seg"]["PQ"] == pytest.approx(100)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("iscrowd"), "segment, 1, that has no iscrowd"),
            (lambda s: s.update(category_id=5), "segment, 1, that has the category_id 5, which is not in"),
            (lambda s: s.update(id="1"), "segment, number 1, that has no id"),
        ],
    )
    def test_invalid_segments_are_rejected_before_training(self, tmp_path, change, message):
        with panoptic_dataset(tmp_path, "toy_segments", patches=False) as name:
            edit(tmp_path / "panoptic.json", lambda content: change(content["annotations"][0]["segments_info"][0]))
            with pytest.raises(DataError, match=f"panoptic.json: annotation 001.png has a {message}"):
                PanopticEvaluator(name)

    def test_nothing_predicted(self, toy, tmp_path):
        def nothing(record, outputs):
            return {**outputs, "panoptic_seg": (torch.zeros(SIZE, dtype=torch.int32), [])}

        results = evaluate(PanopticEvaluator(toy), toy, nothing)["panoptic_seg"]
        assert results["PQ"] == 0


def test_results_table():
    results = {"panoptic_seg": {"PQ": 41.23, "PQ_st": float("nan")}, "sem_seg": {"mIoU": 50.0}}
    lines = format_results({"coco": results}).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["", "PQ", "PQ_st", "mIoU"]
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["coco", "41.2", "-", "50.0"]
