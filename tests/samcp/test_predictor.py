"""Prompts of the Predictor with a small random model, and the example of README.md."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from proposal_cache import CacheError, PatchCache, Patches
from proposal_cache.generators.contours import ContourGenerator
from samcp import SAMCP, add_samcp_config
from samcp.checkpoint import Checkpointer
from samcp.data import build_test_loader
from samcp.errors import CheckpointError, DataError
from samcp.export import ModelFile
from samcp.predictor import Predictor
from samcp.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
NAMES = Vocabulary.of_dataset("synthetic_train").names


def config(**overrides):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "miniature" / "panoptic.yaml"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("synthetic_train",), ("synthetic_val",)
    cfg.merge_from_list([part for key, value in overrides.items() for part in (key.replace("__", "."), value)])
    return cfg


def model_of(cfg):
    """Return a random model with scores and affinities that differ enough to give segments."""
    torch.manual_seed(0)
    model = SAMCP(cfg).eval()
    with torch.no_grad():
        model.classifier.bias.zero_()
        model.classifier.log_scale.fill_(-2)
        for layer in model.decoder.layers:
            layer.affinity.patch_bias.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    cfg = config(OUTPUT_DIR=str(tmp_path_factory.mktemp("run")))
    Checkpointer(model_of(cfg), cfg).save("model_final")
    return Path(cfg.OUTPUT_DIR) / "model_final.pth"


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_pretrained(checkpoint)


@pytest.fixture
def images(synthetic):
    """Return paths and patches of two images."""
    cache = PatchCache(synthetic.val_patches)
    paths = [Path(record["file_name"]) for record in DatasetCatalog.get("synthetic_val")[:2]]
    return [(path, cache[path.stem]) for path in paths]


@pytest.fixture
def scene(predictor, images):
    return predictor(*images[0])


def test_segmentations_equal_evaluation(predictor, synthetic, images, monkeypatch):
    for threshold in ("score_threshold", "affinity_threshold", "overlap_threshold"):
        monkeypatch.setattr(predictor.model.inference, threshold, 0.0)  # scores of random weights are low
    cfg = config(DATASETS__PATCHES_TEST=(str(synthetic.val_patches),))
    [[inputs], *_] = build_test_loader(cfg, "synthetic_val")
    with torch.no_grad():
        [expected] = predictor.model([inputs])
    result = predictor(*images[0]).segment()
    assert torch.equal(result.semantic, expected["sem_seg"])
    ids, segments = result.panoptic
    assert torch.equal(ids, expected["panoptic_seg"][0])
    assert segments == expected["panoptic_seg"][1]
    assert segments, "segments are required for this comparison"
    instances = result.instances
    assert torch.equal(instances.scores, expected["instances"].scores)
    assert torch.equal(instances.pred_classes, expected["instances"].pred_classes)
    assert instances.pred_masks.rles == expected["instances"].pred_masks.rles


def test_prompts_equal_definition(predictor, scene):
    model = predictor.model
    with torch.no_grad():
        embeddings = model.class_embedding()
        queries, outputs = model._decode(scene.encoded, embeddings)
        score = model.classifier(outputs[-1].queries, embeddings)[0].sigmoid()
        affinity = outputs[-1].affinity_logits[0].sigmoid()
    result, first = scene.segment(), queries.num_semantic
    stuff = [c for c, is_thing in enumerate(result.vocabulary.is_thing) if not is_thing]
    labels = result.labels.scores
    assert labels.shape == (len(scene.patches), len(NAMES))
    for c in range(len(NAMES)):
        rows = slice(stuff.index(c), stuff.index(c) + 1) if c in stuff else slice(first, None)
        expected = (score[rows, c, None] * affinity[rows]).amax(0)
        assert torch.allclose(labels[:, c], expected, atol=1e-6)
    disc = NAMES.index("disc")
    best = score[first:, disc].topk(min(100, len(affinity) - first)).indices + first
    low, high = affinity[best].amin(1, keepdim=True), affinity[best].amax(1, keepdim=True)
    claims = (affinity[best] - low) / (high - low)
    joint = (score[best, disc, None, None] * claims[:, :, None] * claims[:, None, :]).amax(0)
    assert torch.allclose(result.affinities("disc"), joint, atol=1e-6)
    assert (result.affinities() >= result.affinities("disc")).all(), "the default label is any thing class"


def test_path_and_array_are_equivalent(predictor, images):
    path, patches = images[0]
    pixels = np.asarray(Image.open(path))
    assert torch.equal(
        predictor(path, patches).segment().labels.scores, predictor(pixels, patches).segment().labels.scores
    )
    bgr = Predictor(predictor.model, augmentations=predictor.augmentations.augs, image_format="BGR")
    mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
    assert torch.equal(
        bgr(pixels, patches).segment().labels.scores, predictor(mirrored, patches).segment().labels.scores
    )


def test_batch_equals_single_images(predictor, images):
    paths, patches = [path for path, _ in images], [images[0][1], images[1][1].select(slice(5))]
    scenes = predictor.batch(paths, patches)
    for path, own, together in zip(paths, patches, scenes, strict=True):
        result, alone = together.segment(), predictor(path, own).segment()
        assert len(together.patches) == len(own)
        assert torch.allclose(result.labels.scores, alone.labels.scores, atol=1e-5)
        assert torch.allclose(result.affinities(), alone.affinities(), atol=1e-5)


def test_inside_region_reuses_features(predictor, images):
    path, patches = images[0]
    runs = []
    handle = predictor.model.backbone.register_forward_hook(lambda *_: runs.append(1))
    scene = predictor(path, patches)
    region = np.zeros((patches.height, patches.width), dtype=bool)
    region[:, : patches.width // 2] = True
    inside = scene.inside(region)
    result = inside.segment()
    handle.remove()
    assert len(runs) == 1
    share = [(mask & region).sum() / mask.sum() for mask in patches.decode()]
    expected = patches.select(np.flatnonzero(np.array(share) >= 0.8))
    assert 1 < len(expected) < len(patches)
    assert inside.patches.rles == expected.rles
    alone = predictor(path, expected).segment()
    assert torch.allclose(result.labels.scores, alone.labels.scores, atol=1e-6)
    assert (result.panoptic[0].numpy()[~np.logical_or.reduce(expected.decode())] == 0).all()


def test_with_patches(predictor, images):
    path, patches = images[0]
    finer = ContourGenerator(patches=80)(np.asarray(Image.open(path)))
    result = predictor(path, patches).with_patches(finer).segment()
    assert torch.allclose(result.labels.scores, predictor(path, finer).segment().labels.scores, atol=1e-6)


def test_other_vocabulary(predictor, scene):
    """Semantic queries do not attend to each other, so the scores of a class do not depend on the vocabulary."""
    first = scene.segment()
    before = first.panoptic[1]
    chosen = [len(NAMES) - 1, 1, 0]
    things = first.vocabulary.is_thing
    few = scene.segment(Vocabulary(tuple(NAMES[c] for c in chosen), tuple(things[c] for c in chosen)))
    assert torch.allclose(few.labels.scores, first.labels.scores[:, chosen], atol=1e-6)
    assert set(few.semantic.unique().tolist()) <= {-1, 0, 1, 2}
    assert first.panoptic[1] == before, "earlier results must not change"
    assert torch.equal(scene.segment().labels.scores, first.labels.scores)


def test_rejects_words_that_were_not_learned(scene):
    with pytest.raises(ValueError, match=r"not learned 'rings' \(near: ring, .*CLIP's text encoder"):
        scene.segment(Vocabulary(("rings", NAMES[0]), (True, True)))
    assert scene.segment().vocabulary.names == NAMES


def test_image_without_patches(predictor, images):
    path, patches = images[0]
    empty = Patches.empty(patches.height, patches.width)
    everything = predictor(path, patches)
    nowhere = np.zeros((patches.height, patches.width), dtype=bool)
    for scene in (predictor(path, empty), everything.inside(nowhere)):
        result = scene.segment()
        assert result.labels.scores.shape == (0, len(NAMES))
        assert result.affinities().shape == result.affinities(NAMES[0]).shape == (0, 0)
        assert (result.semantic == -1).all()
        assert len(result.instances) == 0
        assert result.panoptic[1] == []


def test_model_file_contains_vocabulary(checkpoint, images, tmp_path):
    """Loading a model file requires no registered dataset."""
    file = ModelFile.of_checkpoint(checkpoint)
    text = file.config.replace("synthetic_train", "never_registered")
    ModelFile(file.tensors, text, file.vocabulary).save(tmp_path / "model.safetensors")
    loaded = Predictor.from_pretrained(tmp_path / "model.safetensors", device="cpu")
    assert loaded.vocabulary == file.vocabulary
    expected = Predictor.from_pretrained(checkpoint)(*images[0]).segment().labels.scores
    assert torch.equal(loaded(*images[0]).segment().labels.scores, expected)


def test_gpu_is_used_if_there_is_one(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    built = []
    monkeypatch.setattr(Predictor, "from_config", classmethod(lambda cls, cfg, *args: built.append(cfg.MODEL.DEVICE)))
    for options in ({}, {"device": "cpu"}):
        Predictor.from_pretrained(checkpoint, **options)
        Predictor.from_pretrained("samcp-everyday-lite", **options)
    assert built == ["cuda", "cuda", "cpu", "cpu"]


def test_results_stay_in_their_folder(scene, tmp_path):
    result = scene.segment()
    for name in (str(tmp_path / "photo.jpg"), "../photo.jpg"):
        with pytest.raises(CacheError, match="must be a relative path"):
            result.save(tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_model_without_instance_queries(images):
    cfg = config(MODEL__SAMCP__INSTANCE_QUERIES=False, MODEL__SAMCP__SEMANTIC_QUERIES="all")
    result = Predictor(model_of(cfg), augmentations=[], image_format="RGB")(*images[0]).segment()
    assert (result.labels.scores > 0).all(), "things also have semantic queries"
    with pytest.raises(ValueError, match="INSTANCE_QUERIES"):
        result.affinities()


class TestBadInput:
    def test_no_weights(self):
        with pytest.raises(CheckpointError, match=r"MODEL.WEIGHTS is empty"):
            Predictor.from_config(config())

    def test_no_checkpoint(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"gone.pth: no such checkpoint"):
            Predictor.from_pretrained(tmp_path / "gone.pth")

    def test_patches_of_another_image(self, predictor, scene, images):
        with pytest.raises(DataError, match=r"96 x 128 pixels .* 50 x 60"):
            predictor(images[0][0], Patches.empty(50, 60))
        with pytest.raises(DataError, match=r"96 x 128 pixels .* 50 x 60"):
            scene.with_patches(Patches.empty(50, 60))

    @pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8)])
    def test_invalid_image(self, predictor, image):
        with pytest.raises(DataError, match=r"an \(H, W, 3\) uint8 RGB array or a \(3, H, W\) uint8"):
            predictor(image, Patches.empty(9, 9))

    def test_missing_image(self, predictor, tmp_path):
        with pytest.raises(CacheError, match=r"gone.jpg cannot be read"):
            predictor(tmp_path / "gone.jpg", Patches.empty(9, 9))

    def test_invalid_labels(self, scene):
        result = scene.segment()
        stuff = NAMES[result.vocabulary.is_thing.index(False)]
        with pytest.raises(ValueError, match=rf"'{stuff}' is stuff"):
            result.affinities(stuff)
        with pytest.raises(ValueError, match=r"'rung' is not one of the .* classes .*mean: ring"):
            result.affinities("rung")


def test_readme_example(checkpoint, synthetic, tmp_path, monkeypatch):
    section = (ROOT / "README.md").read_text().split("\n## Prompts\n")[1].split("\n## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    lines = [line for line in code.splitlines() if line]
    assert 5 < len(lines) < 15
    # Link the files that the example reads.
    for name, target in (("output/tour/model_final.pth", checkpoint), ("datasets/synthetic", synthetic.folder)):
        assert name in code
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(re.sub(r"^print\(", "shown = (", code, flags=re.MULTILINE), variables)
    assert variables["parts"].vocabulary.names == NAMES
