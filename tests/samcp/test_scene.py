"""Scenes and results of the Python interface, with the shipped model and a photograph."""

import copy
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from proposal_cache import CacheError, Patches
from samcp import Predictor
from samcp.data.ground_truth import read_panoptic_ids
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def photo():
    """Return a photograph of a cat, (100, 150, 3)."""
    return np.asarray(Image.fromarray(skimage.data.chelsea()).resize((150, 100)))


@pytest.fixture(scope="module")
def predictor():
    """Return the shipped model without its enlargement of images, which takes a second per image."""
    model = Predictor.from_pretrained(device="cpu").model
    return Predictor(model, augmentations=[], image_format="RGB")


@pytest.fixture(scope="module")
def scene(predictor, photo):
    return predictor(photo)


@pytest.fixture(scope="module")
def result(scene):
    return scene.segment("cat, sky~")


def test_all_kinds_of_images_are_equivalent(predictor, scene, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "cat.png")
    tensor = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    for image in (tmp_path / "cat.png", str(tmp_path / "cat.png"), Image.fromarray(photo), tensor):
        pixels = predictor(image, scene.patches.select(slice(3))).image
        assert np.array_equal(pixels, photo)


def test_pil_image_is_turned_upright_as_its_file(predictor, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(photo).save(tmp_path / "cat.png", exif=exif)
    patches = Patches.empty(150, 100)
    from_pil = predictor(Image.open(tmp_path / "cat.png"), patches)
    assert np.array_equal(from_pil.image, predictor(tmp_path / "cat.png", patches).image)


def test_patches_are_made_by_the_generator_unless_given(predictor, scene, photo):
    assert scene.patches.rles == predictor.generator(photo).rles
    given = scene.patches.select(slice(4))
    assert predictor(photo, given).patches.rles == given.rles
    assert [len(s.patches) for s in predictor.batch([photo, photo], [given, scene.patches])] == [4, len(scene.patches)]


def test_words_are_text_list_or_vocabulary(scene, result):
    for words in (["cat", "sky~"], Vocabulary(("cat", "sky"), (True, False))):
        assert torch.equal(scene.segment(words).labels.scores, result.labels.scores)
    assert scene.segment().vocabulary == scene.predictor.vocabulary


def test_unknown_word_names_the_nearest(scene):
    with pytest.raises(ValueError, match=r"'elefant' \(near: elephant"):
        scene.segment("elefant")


def test_two_threads_get_the_results_of_one(predictor, photo):
    """The model has one vocabulary at a time, so that two callers would get each other's classes."""

    def ask(words):
        scene = predictor(photo)
        return [scene.label(words).scores for _ in range(4)]

    questions = ["cat, dog", "person, car, sky~"]
    expected = [ask(words) for words in questions]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(ask, questions))
    for scores, alone in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(scores, alone, strict=True))


def test_text_of_results(result, scene):
    assert repr(scene) == f"<Scene 100 x 150: {len(scene.patches)} patches>"
    assert repr(result) == f"<Result 100 x 150: {result.summary()}>"
    assert repr(scene.with_patches(Patches.empty(100, 150)).segment()) == "<Result 100 x 150: nothing found>"
    assert "highest scores: cat 0." in repr(result.labels)


def test_summary(result):
    """A threshold below the best score finds one cat, that score as the threshold finds nothing."""
    best = float(result.instances.scores[0])
    nothing = f"nothing found (best: cat {best:.3f}, threshold {best:g})"
    for threshold, text in ((best - 1e-4, "1 cat"), (best, nothing)):
        inference = copy.copy(result.inference)
        inference.score_threshold = threshold
        assert replace(result, inference=inference).summary("instance") == text
    names = ["cat" if c == 0 else "sky" for c in result.semantic.unique().tolist() if c >= 0]
    assert result.summary("semantic") == ", ".join(names)
    counts = Counter(segment["category_id"] for segment in result.panoptic[1])
    assert result.summary() == ", ".join([f"{counts[0]} cat"] * (0 in counts) + ["sky"] * (1 in counts))


class TestGroup:
    def test_is_the_best_instance_with_the_patch(self, result, monkeypatch):
        """Prompt II of the patch with itself is the group's score, and no instance of its patches has a higher one."""
        monkeypatch.setattr(result.inference, "top_instances", len(result.patches))  # a group may be of any instance
        for patch in range(0, len(result.patches), 20):
            group = result.group(patch, "cat")
            assert patch in group.patches
            assert 0 < group.score <= float(result.affinities("cat")[patch, patch]) + 1e-6
            mask = np.logical_or.reduce(result.patches.decode(list(group.patches)))
            assert np.array_equal(group.mask, mask)

    def test_at_a_point_is_the_best_of_the_patches_there(self, result):
        x, y = 75, 50
        there = np.flatnonzero(result.patches.decode()[:, y, x])
        group = result.group((x, y), "cat")
        assert group.score == max(result.group(int(i), "cat").score for i in there)
        assert group.mask[y, x]

    def test_rejects_invalid_places(self, result, scene):
        with pytest.raises(ValueError, match=r"point \(150, 3\) is outside the image of 150 x 100 pixels"):
            result.group((150, 3))
        with pytest.raises(ValueError, match=r"no patch 999; the scene has"):
            result.group(999)
        with pytest.raises(ValueError, match=r"no patch covers the point \(5, 5\)"):
            scene.with_patches(Patches.empty(100, 150)).group((5, 5), "cat")
        with pytest.raises(ValueError, match="all words are stuff"):
            scene.group(0, "sky~")


class TestInside:
    def test_mask_box_and_instance(self, scene, result):
        box = (30, 20, 110, 90)
        mask = np.zeros((100, 150), bool)
        mask[20:90, 30:110] = True
        inside = scene.inside(box)
        assert (
            inside.patches.rles == scene.inside(mask).patches.rles == scene.inside(torch.from_numpy(mask)).patches.rles
        )
        assert 0 < len(inside.patches) < len(scene.patches)
        best = result.instances[0]
        by_mask = scene.inside(best.pred_masks.tensor[0])
        assert scene.inside(best).patches.rles == by_mask.patches.rles

    def test_any_depth(self, scene):
        deep = scene.inside((10, 10, 140, 95)).inside((30, 20, 110, 90)).inside((40, 30, 90, 80))
        assert deep.patches.rles == scene.inside((40, 30, 90, 80)).patches.rles

    def test_finer_patches_are_inside_and_new(self, scene):
        box = (40, 30, 90, 80)
        coarse, fine = scene.inside(box), scene.inside(box, finer=True)
        assert len(fine.patches) > len(coarse.patches)
        assert fine.patches.rles[: len(coarse.patches)] == coarse.patches.rles
        region = np.zeros((100, 150), bool)
        region[30:80, 40:90] = True
        assert all((mask & region).sum() >= 0.8 * mask.sum() for mask in fine.patches.decode())
        assert fine.label("cat").scores.shape == (len(fine.patches), 1)

    def test_rejects_invalid_regions(self, scene, result):
        with pytest.raises(DataError, match=r"\(100, 150\) mask, a box .* but has shape \(9, 9\)"):
            scene.inside(np.zeros((9, 9), bool))
        with pytest.raises(DataError, match=r"has 2 instances, not 1"):
            scene.inside(result.instances[:2])
        with pytest.raises(CacheError, match=r"does not overlap the image"):
            scene.inside((200, 10, 210, 20))


def test_denser_adds_patches_without_duplicates(scene):
    dense = scene.denser([(40, 30, 90, 80), (60, 0, 150, 60)])
    count = len(scene.patches)
    assert len(dense.patches) > count
    assert dense.patches.rles[:count] == scene.patches.rles
    new = dense.patches.select(slice(count, None))
    assert new.iou(scene.patches).max() <= 0.7
    again = dense.denser([(40, 30, 90, 80)])
    assert len(again.patches) == len(dense.patches)


class TestOutput:
    def test_draw(self, result):
        pictures = {task: result.draw(task) for task in ("panoptic", "instance", "semantic")}
        assert all(picture.size == pictures["panoptic"].size for picture in pictures.values())
        assert result.draw() == pictures["panoptic"]
        with pytest.raises(ValueError, match="task is 'parts'; choose one of panoptic, instance, semantic"):
            result.draw("parts")

    def test_saved_files_describe_the_image(self, result, tmp_path):
        picture, ids, described = result.save(tmp_path, "pets/cat.png")
        assert Image.open(picture).width >= 150
        content = json.loads(described.read_text())
        assert content["images"] == [{"id": "pets/cat", "file_name": "pets/cat.png", "height": 100, "width": 150}]
        assert [category["name"] for category in content["categories"]] == ["cat", "sky"]
        assert np.array_equal(read_panoptic_ids(str(ids)), result.panoptic[0].numpy())
        assert len(content["annotations"][0]["segments_info"]) == len(result.panoptic[1])

    def test_segmentations_are_computed_once(self, result):
        assert result.panoptic is result.panoptic
        assert result.semantic is result.semantic
        assert result.instances is result.instances


def test_no_images_give_no_scenes(predictor):
    assert predictor.batch([]) == []


def test_model_configured_for_scores_returns_labels(predictor, scene, result, monkeypatch):
    monkeypatch.setattr(predictor.model.inference, "sem_seg_scores", True)
    assert np.array_equal(scene.segment("cat, sky~").semantic, result.semantic)
