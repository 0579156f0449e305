"""Class embeddings, with a tiny open_clip model."""

import logging
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from samcp.errors import CheckpointError
from samcp.modeling import class_embedding
from samcp.modeling.class_embedding import CLIPClassEmbedding, LearnedClassEmbedding, embed_words
from samcp.modeling.clip import load_clip
from samcp.vocabulary import Vocabulary
from tests.tiny_clip import make_tiny_clip

PROMPTS = ["a photo of a {}.", "there is a {} in the scene."]


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_tiny_clip(tmp_path_factory.mktemp("clip"), "transformer")


def test_embeddings_equal_open_clip(tiny_clip: tuple[str, str]) -> None:
    name, weights = tiny_clip
    words = [("kite",), ("sea", "ocean")]
    embedding = CLIPClassEmbedding(words, name=name, pretrained=weights, prompts=PROMPTS)()
    model = open_clip.create_model(name, pretrained=weights).eval()
    tokenizer = open_clip.get_tokenizer(name)
    assert embedding.shape == (3, 24)
    for row, word in zip(embedding, ["kite", "sea", "ocean"], strict=True):
        with torch.no_grad():
            both = F.normalize(model.encode_text(tokenizer([p.format(word) for p in PROMPTS])), dim=-1)
        assert torch.allclose(row, F.normalize(both.mean(0), dim=-1), atol=1e-6)
    assert not torch.allclose(embedding[0], embedding[1], atol=1e-2)


def test_max_over_words(tiny_clip: tuple[str, str]) -> None:
    name, weights = tiny_clip
    words = [("person", "man", "woman"), ("kite",), ("sea", "ocean")]
    embedding = CLIPClassEmbedding(words, name=name, pretrained=weights, prompts=PROMPTS)
    assert embedding.names.tolist() == [0, 3, 4]
    values = torch.randn(2, 5, 6, requires_grad=True)
    best = embedding.max_over_words(values)
    expected = torch.stack([values[..., :3].amax(-1), values[..., 3], values[..., 4:].amax(-1)], dim=-1)
    assert torch.equal(best, expected)
    best.sum().backward()
    assert values.grad is not None
    assert (values.grad.sum(-1) == 3).all(), "each class has a gradient for one of its words"


def test_embeddings_are_cached(
    tiny_clip: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path))
    name, weights = tiny_clip
    calls = []

    def embed(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        return original(*arguments)

    original = class_embedding._embed
    monkeypatch.setattr(class_embedding, "_embed", embed)
    first = embed_words(["kite", "sea"], name, weights, PROMPTS)
    assert torch.equal(embed_words(["kite", "sea"], name, weights, PROMPTS), first)
    assert len(calls) == 1

    [file] = (tmp_path / "text_embeddings").iterdir()
    file.write_bytes(b"half a file")
    assert torch.equal(embed_words(["kite", "sea"], name, weights, PROMPTS), first)
    assert f"{file} is damaged" in caplog.text
    assert len(calls) == 2

    embed_words(["sea", "kite"], name, weights, PROMPTS)
    embed_words(["kite", "sea"], name, weights, PROMPTS[:1])
    other = tmp_path / "other.pt"
    torch.manual_seed(1)
    torch.save(open_clip.create_model(name).state_dict(), other)
    assert not torch.allclose(embed_words(["kite", "sea"], name, str(other), PROMPTS), first)
    assert len(calls) == 5, "other words, templates or weights must be encoded"


def test_unwritable_cache_folder_logs_a_warning(
    tiny_clip: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path / "file"))
    assert embed_words(["kite"], tiny_clip[0], tiny_clip[1], PROMPTS).shape == (1, 24)
    assert "cannot cache text embeddings" in caplog.text


def test_check_words_accepts_all_words_without_encoding(
    tiny_clip: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = CLIPClassEmbedding([("kite",)], name=tiny_clip[0], pretrained=tiny_clip[1], prompts=PROMPTS)
    monkeypatch.setattr(class_embedding, "embed_words", pytest.fail)
    embedding.check_words([("anything", "else")])


def test_state_dict_is_independent_of_vocabulary(toy_cfg: CfgNode, tiny_clip: tuple[str, str]) -> None:
    """A checkpoint can be loaded for any vocabulary."""
    name, weights = tiny_clip
    toy_cfg.MODEL.SAMCP.TEXT.ENCODER = "clip"
    toy_cfg.MODEL.CLIP.NAME, toy_cfg.MODEL.CLIP.PRETRAINED = name, weights
    model = build_model(toy_cfg)
    assert model.class_embedding().shape == (5, 24)
    assert not any("class_embedding" in key for key in model.state_dict())
    model.set_vocabulary(Vocabulary(("kite", "sea"), (True, False), (("dragon",), ())))
    assert model.class_embedding().shape == (3, 24)
    assert model.vocabulary.names == ("kite", "sea")


def test_learned_embedding() -> None:
    table = LearnedClassEmbedding([("kite", "dragon"), ("sea",)], 8)
    assert table().shape == (2, 8)
    assert table().requires_grad
    both = table().detach()
    table.set_words([("Sea",)])
    assert torch.equal(table(), both[1:])
    for ask in (table.set_words, table.check_words):
        with pytest.raises(ValueError, match=r"not learned 'dragon' \(near: nothing\); it knows 2 classes: kite, sea;"):
            ask([("dragon",)])
    table.check_words([("kite",)])
    assert torch.equal(table(), both[1:]), "check_words must not change the table"


def test_missing_weights(tiny_clip: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pretrained is '.*absent.pt"):
        embed_words(["kite"], tiny_clip[0], str(tmp_path / "absent.pt"), PROMPTS)


def test_weights_of_another_model(tiny_clip: tuple[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, other)
    with pytest.raises(
        CheckpointError, match=r"cannot load .*other\.pt.* of samcp_tiny_transformer .*local checkpoint file"
    ):
        embed_words(["kite"], tiny_clip[0], str(other), PROMPTS)


def test_unknown_model() -> None:
    with pytest.raises(CheckpointError, match="name is 'no_such_clip'"):
        embed_words(["kite"], "no_such_clip", "", PROMPTS)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("a photo", "'a photo'"),
        ("a {} and {}", "'a {} and {}'"),
        ("a {x}", "'a {x}'"),
        ("a {{}}", "'a {{}}'"),
        (None, "prompts is empty"),
    ],
)
def test_rejects_invalid_templates(tiny_clip: tuple[str, str], template: str | None, named: str) -> None:
    prompts = [] if template is None else [PROMPTS[0], template]
    with pytest.raises(ValueError, match="prompts") as error:
        embed_words(["kite", "sea"], *tiny_clip, prompts)
    assert named in str(error.value)


def test_download_logs_one_line(
    tiny_clip: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_clip(*tiny_clip)
    assert not caplog.messages, "loading a local file logs nothing"

    def fail(name: str, pretrained: str, **options: bool) -> None:
        assert options == {"force_quick_gelu": True}, "OpenAI's weights need this activation; open_clip only warns"
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s")
        raise OSError("Name or service not known")

    monkeypatch.setattr(open_clip, "create_model", fail)
    with pytest.raises(CheckpointError, match=r"cannot load the weights 'openai' of RN50 .*a local checkpoint file"):
        load_clip("RN50", "openai")
    [line] = caplog.messages
    assert line.startswith("loading weights 'openai' of RN50, from the network")
    assert "a local checkpoint file" in line
    assert logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
