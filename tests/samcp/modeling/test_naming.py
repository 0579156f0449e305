"""Naming of regions by an ImageNet classifier and by CLIP."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from timm.data import ImageNetInfo

from samcp import SAMCP, model_zoo
from samcp.errors import CheckpointError
from samcp.evaluation.clip_weight import ClipWeightSweep
from samcp.modeling.naming import NAMES
from samcp.modeling.naming.clip import CLIPNamer
from samcp.modeling.naming.imagenet import ImageNetNamer, LearnedWords
from samcp.modeling.naming.words import word_table
from samcp.modeling.open_vocabulary import mask_weights
from samcp.predictor import Predictor
from samcp.vocabulary import Vocabulary, word_key
from tests.tiny_clip import make_tiny_clip

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def namer() -> ImageNetNamer:
    return ImageNetNamer(LearnedWords.load(model_zoo.WORDS), min_size=96)


@pytest.mark.parametrize(
    ("word", "rows"),
    [
        ("dog", range(151, 269)),
        ("Puppies", None),
        ("dogs", range(151, 269)),
        ("golden retriever", [207]),
        ("espresso", [967]),
        ("sky", []),
    ],
)
def test_words(word: str, rows: Any) -> None:
    found = word_table().find(word)
    if rows is None:
        assert found is None
    else:
        assert found is not None
        assert found.rows == tuple(rows)


def everyday_words() -> list[str]:
    """Return the words of words.txt."""
    text = (ROOT / "projects" / "samcp" / "samcp" / "modeling" / "naming" / "words.txt").read_text()
    lines = [line.rpartition(":")[0] for line in text.splitlines() if line and not line.startswith("#")]
    return [word_key(word) for line in lines for word in line.split(",")]


def test_every_number_is_a_class_and_every_word_occurs_once() -> None:
    assert all(0 <= row < 1000 for rows in word_table().rows for row in rows)
    assert [word for word, occurrences in Counter(everyday_words()).items() if occurrences > 1] == []


def test_documents_count_the_known_words(namer: ImageNetNamer) -> None:
    info = ImageNetInfo()
    names = {word_key(name) for i in range(1000) for name in info.index_to_description(i).split(",")}
    others = {word for word in everyday_words() if namer.knows([word])} - names
    assert all(namer.knows([name]) for name in names)
    numbers = [f"{len(names) + len(others):,}", f"the names of ImageNet's classes and {len(others)} everyday"]
    for file in ("README.md", "weights/README.md", "docs/tour.ipynb", "projects/samcp/samcp/cli.py"):
        text = " ".join((ROOT / file).read_text().split())
        assert all(number in text for number in numbers), f"{file} lacks {numbers}"


def test_unknown_word_has_near_ones(namer: ImageNetNamer) -> None:
    with pytest.raises(ValueError, match=r"'elefant' \(near: .*elephant.*\); 'qqq' \(near: nothing\); use other words"):
        namer.check_words([("elefant",), ("dog",), ("qqq",), ("qqq", "cat")])


def test_word_without_imagenet_class_is_known_if_learned(namer: ImageNetNamer) -> None:
    namer.check_words([("sky",)])
    with pytest.raises(ValueError, match="'sky'"):
        ImageNetNamer(None, min_size=96).check_words([("sky",)])


@torch.no_grad()
def test_probabilities_against_literal_formula(namer: ImageNetNamer) -> None:
    torch.manual_seed(0)
    namer.set_words([("golden retriever",), ("blorp", "sky"), ("blorp",)])
    dense = namer.dense(torch.rand(3, 96, 130) * 255)[0]
    assert tuple(dense.shape) == (1280, *namer.grid(96, 130)) == (1280, 3, 4)
    weights = torch.rand(2, 3, 4)
    weights[1] = 0
    probabilities = namer.probabilities(dense, weights)
    assert (probabilities[1] == 0).all(), "a region without area"

    table, learned = word_table(), namer.learned
    sky = table.names.index("sky")
    others = [
        g for g, known in enumerate(table.rows) if g != sky and 207 not in known and (known or learned.delta[g].any())
    ]

    def of_cell(features: torch.Tensor) -> torch.Tensor:
        rows = namer.network.classifier(features).log_softmax(-1)

        def logit(group: int) -> float:
            best = max((float(rows[row]) for row in table.rows[group]), default=-7.0)
            return float(learned.scale * best + learned.delta[group] @ features + learned.bias[group])

        asked = [float(learned.scale * rows[207]), logit(sky)]
        return torch.tensor(asked + [logit(group) for group in others]).softmax(0)[:2]

    cells = sum(weights[0, y, x] * of_cell(dense[:, y, x]) for y in range(3) for x in range(4))
    assert torch.allclose(probabilities[0, :2], cells / weights[0].sum(), atol=1e-5)
    assert probabilities[0, 2] == 0, "an unknown class"


def test_classes_with_the_same_meaning(namer: ImageNetNamer, caplog: pytest.LogCaptureFixture) -> None:
    """Water is the first word of its line, man is before woman; a second meaning stays."""
    words = [("river",), ("man",), ("water",), ("sea", "sky"), ("woman",), ("blorp",)]
    namer.set_words([words[0], words[1]])
    cell = torch.rand(1280, 1, 1)
    alone = namer.probabilities(cell, torch.ones(1, 1, 1))[0]
    caplog.clear()
    assert namer.distinct(words) == [1, 2, 3]
    assert namer.distinct(words[:1] + words[4:]) == [0, 1]
    namer.set_words([words[0], words[2], words[1]])
    assert "another class has the same meaning: river" in caplog.text
    together = namer.probabilities(cell, torch.ones(1, 1, 1))[0]
    assert together[0] == 0
    assert torch.allclose(together[1:], alone, atol=1e-6), "the probability is not divided"


def test_class_with_a_shared_meaning_in_capitals(namer: ImageNetNamer) -> None:
    assert namer.distinct([("sea",), ("Water",)]) == namer.distinct([("sea",), ("water",)]) == [1]


@pytest.mark.parametrize(("size", "grid"), [((96, 130), (3, 4)), ((10, 4000), (1, 64)), ((4000, 10), (64, 1))])
def test_map_of_a_long_thin_image_is_limited(namer: ImageNetNamer, size: Any, grid: Any) -> None:
    assert namer.grid(*size) == grid


def test_damaged_file_of_words(tmp_path: Any) -> None:
    (tmp_path / "words.safetensors").write_bytes(b"no words")
    with pytest.raises(CheckpointError, match="not a file of scripts/train_words.py"):
        LearnedWords.load(tmp_path / "words.safetensors")
    LearnedWords(torch.zeros(3, 1280), torch.zeros(3), torch.ones(())).save(tmp_path / "words.safetensors")
    with pytest.raises(CheckpointError, match=r"has 3 groups of words, but words.txt has \d+"):
        LearnedWords.load(tmp_path / "words.safetensors")


@pytest.fixture
def agnostic_cfg(toy_cfg: CfgNode) -> CfgNode:
    toy_cfg.MODEL.SAMCP.TEXT.ENCODER = "agnostic"
    toy_cfg.MODEL.SAMCP.NAMING.ENCODER = "imagenet"
    toy_cfg.MODEL.SAMCP.NAMING.MIN_SIZE = 96
    toy_cfg.MODEL.SAMCP.OPEN_VOCABULARY.ENABLED = True
    toy_cfg.MODEL.SAMCP.OPEN_VOCABULARY.KAPPA = toy_cfg.MODEL.SAMCP.OPEN_VOCABULARY.KAPPA_UNSEEN = 0.6
    return toy_cfg


@torch.no_grad()
def test_instances_are_objects_with_names(agnostic_cfg: CfgNode, toy: Any) -> None:
    torch.manual_seed(0)
    model = SAMCP(agnostic_cfg, vocabulary=Vocabulary(("object",), (True,))).eval()
    model.set_vocabulary(Vocabulary(("dog", "cat", "sky"), (True, True, False)))
    inputs = [toy.input(8, {}, size=(64, 96)), toy.input(5, {}, size=(96, 64), seed=4)]
    images, patches = model.encode(inputs), [x["patch_rles"] for x in inputs]
    learned = model.predict_learned(images)
    for i, fused in enumerate(model.predict(images, patches)):
        assert torch.equal(learned[i].instance_scores[:, 0], learned[i].instance_scores[:, 1]), "all words are equal"
        size = inputs[i]["image"].shape[1:]
        dense = model.namer.dense(inputs[i]["image"].float())[0]
        members = model.inference.members(learned[i].instance_affinity)
        grid = model.namer.grid(*size)
        names = model.namer.probabilities(dense, mask_weights(members, patches[i], grid))
        expected = learned[i].instance_scores ** (1 - 0.6) * names**0.6
        assert torch.allclose(fused.instance_scores, expected, atol=1e-4)
        alone = mask_weights(torch.eye(len(patches[i]), dtype=torch.bool), patches[i], grid)
        sky = model.namer.probabilities(dense, alone)[:, 2]
        assert torch.allclose(fused.semantic_scores * fused.semantic_affinity[0], sky, atol=1e-5)
    [result] = model(inputs[:1])
    assert result["panoptic_seg"][0].shape == (64, 96)


@torch.no_grad()
def test_sweep_of_the_weight_of_names(agnostic_cfg: CfgNode, toy: Any) -> None:
    model = SAMCP(agnostic_cfg, vocabulary=Vocabulary(("object",), (True,))).eval()
    model.set_vocabulary(Vocabulary(("dog", "cat", "sky"), (True, True, False)))
    inputs = [toy.input(8, {})]
    [outputs] = ClipWeightSweep(model, [0.2, 0.6], "product")(inputs)
    [expected] = model(inputs)
    assert torch.equal(outputs[0.6]["instances"].scores, expected["instances"].scores)
    assert not torch.equal(outputs[0.2]["instances"].scores, expected["instances"].scores)


@torch.no_grad()
def test_failed_change_of_words_changes_nothing(
    agnostic_cfg: CfgNode, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the same words would be taken for set when they are asked for again."""
    model = SAMCP(agnostic_cfg, vocabulary=Vocabulary(("object",), (True,))).eval()
    model.set_vocabulary(Vocabulary(("dog", "sky"), (True, False)))
    before = model([toy.input(8, {})])[0]["instances"]
    asked = Vocabulary(("cat", "cup", "tree"), (True, True, False))
    with monkeypatch.context() as patched:
        patched.setattr(model.namer, "set_words", lambda words: interrupt())
        with pytest.raises(KeyboardInterrupt):
            model.set_vocabulary(asked)
    assert model.vocabulary != asked
    after = model([toy.input(8, {})])[0]["instances"]
    assert torch.equal(after.scores, before.scores)
    model.set_vocabulary(asked)
    assert model([toy.input(8, {})])[0]["instances"].pred_classes.max() == 1


def interrupt() -> None:
    raise KeyboardInterrupt


@torch.no_grad()
def test_objects_need_no_names(agnostic_cfg: CfgNode, toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The class that the model was trained on has the learned scores, and the namer is not asked for it."""
    model = SAMCP(agnostic_cfg, vocabulary=Vocabulary(("object",), (True,))).eval()
    inputs = [toy.input(8, {})]
    images, patches = model.encode(inputs), [inputs[0]["patch_rles"]]
    [learned], [predicted] = model.predict_learned(images), model.predict(images, patches)
    assert torch.equal(predicted.instance_scores, learned.instance_scores)
    assert not caplog.text
    model.set_vocabulary(Vocabulary(("dog", "blorp"), (True, True)))
    assert "1 of 2 classes are unknown, such as blorp" in caplog.text


def test_known_words_do_not_depend_on_the_words_before(agnostic_cfg: CfgNode) -> None:
    model = SAMCP(agnostic_cfg, vocabulary=Vocabulary(("object",), (True,)))
    predictor = Predictor(model, augmentations=[], image_format="RGB")
    for words in ("object", "dog", "blorp"):
        model.set_vocabulary(Vocabulary.parse(words))
        predictor.check_words(Vocabulary.parse("object"))
        with pytest.raises(ValueError, match="'blorp'"):
            predictor.check_words(Vocabulary.parse("blorp"))


@torch.no_grad()
def test_image_without_patches(agnostic_cfg: CfgNode, toy: Any) -> None:
    model = SAMCP(agnostic_cfg, vocabulary=Vocabulary(("object",), (True,))).eval()
    model.set_vocabulary(Vocabulary(("dog", "sky"), (True, False)))
    [result] = model([toy.input(0, {})])
    assert len(result["instances"]) == 0
    assert (result["sem_seg"] == -1).all()


def test_encoder_is_neither_trained_nor_saved(agnostic_cfg: CfgNode, toy: Any) -> None:
    model = SAMCP(agnostic_cfg, vocabulary=Vocabulary(("object",), (True,))).train()
    assert not [name for name in model.state_dict() if "namer" in name]
    assert NAMES not in model.encode([toy.input(4, {})]).features
    losses = model([toy.input(8, {0: [1, 2]})])
    assert all(torch.isfinite(loss) for loss in losses.values())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_clip(kind: str, tmp_path: Any) -> None:
    name, weights = make_tiny_clip(tmp_path, kind)
    namer = CLIPNamer(name=name, pretrained=weights, prompts=["a {}."], min_size=64)
    namer.set_words([("kite",), ("sea", "ocean")])
    dense = namer.dense(torch.rand(3, 64, 100) * 255)[0]
    regions = torch.rand(3, *dense.shape[1:])
    regions[2] = 0
    probabilities = namer.probabilities(dense, regions)
    embeddings = namer.embedding()
    logits = namer.tower.logit_scale * namer.tower.pool(dense, regions[:1])[0] @ embeddings.T
    expected = torch.stack([logits[0], logits[1:].max()]).softmax(0)
    assert torch.allclose(probabilities[0], expected, atol=1e-5)
    assert (probabilities[2] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("words", [("cat", "zebra"), ("emu", "zebra")])
def test_clip_does_not_find_unknown_words(words: Any) -> None:
    """The small CLIP knows cat, but neither emu nor zebra."""
    namer = CLIPNamer(name=model_zoo.SMALL_CLIP, pretrained="scenes", prompts=["a {}."], min_size=64)
    classes = [(word,) for word in words]
    known = [namer.knows(names) for names in classes]
    namer.set_words(classes)
    dense = namer.dense(torch.rand(3, 64, 100) * 255)[0]
    probabilities = namer.probabilities(dense, torch.ones(1, *dense.shape[1:]))[0]
    assert probabilities.tolist() == pytest.approx([float(k) for k in known])
