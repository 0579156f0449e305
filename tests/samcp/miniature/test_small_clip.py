"""Small CLIP: its weights, its training, and SAM-CP with it."""

import math
from pathlib import Path

import open_clip
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from samcp import add_samcp_config
from samcp.command_line import training_parser
from samcp.config import load_config
from samcp.errors import CheckpointError, UsageError
from samcp.miniature import small_clip
from samcp.miniature.clip_data import CaptionDataset
from samcp.miniature.clip_training import ClipSchedule, SmallClipTrainer, contrastive_loss, measure
from samcp.miniature.world import CLASSES
from samcp.model_zoo import SMALL_CLIP
from samcp.modeling.class_embedding import embed_words
from samcp.modeling.clip import load_clip
from samcp.modeling.naming.clip import CLIPNamer
from samcp.trainer import Trainer
from tests.toy_datasets import panoptic_dataset

TINY = ClipSchedule(iterations=2, batch=2, crops=1, sizes=(64,))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    small_clip.save_weights(path, small_clip.build())
    return path


def test_weights_of_known_words_are_saved_in_half_precision(weights: Path) -> None:
    torch.manual_seed(0)
    model, loaded = small_clip.build().eval(), load_clip(SMALL_CLIP, str(weights))
    assert isinstance(loaded, open_clip.CLIP)
    texts = open_clip.get_tokenizer(SMALL_CLIP)(["a photo of a small house roof.", "a red and white puppy on grass"])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for found, expected in (
            (loaded.encode_text(texts, normalize=True), model.encode_text(texts, normalize=True)),
            (loaded.encode_image(images, normalize=True), model.encode_image(images, normalize=True)),
        ):
            torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
    assert weights.stat().st_size < 3e6


def test_rejects_weights_of_another_model(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot load the weights .*other.safetensors"):
        load_clip(SMALL_CLIP, str(other))
    with pytest.raises(CheckpointError, match=r"neither a file nor a tag of samcp-clip-lite \(scenes\)"):
        load_clip(SMALL_CLIP, "photographs")


def test_loss_is_least_if_true_pairs_have_the_highest_logits() -> None:
    true = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    false = torch.tensor([[0, 0, 1], [0, 0, 1], [1, 0, 0]]).bool()  # the pair (2, 1) is neither
    logits = torch.where(true, 20.0, 0.0)
    assert contrastive_loss(logits, true, false).item() == pytest.approx(math.log(2) * 2 / 3, abs=1e-4)
    worse, unsaid = logits.clone(), logits.clone()
    worse[2, 0], unsaid[2, 1] = 20.0, 20.0
    assert contrastive_loss(worse, true, false) > contrastive_loss(logits, true, false) + 0.1
    assert contrastive_loss(unsaid, true, false) == contrastive_loss(logits, true, false)


def test_items_are_the_same_at_each_reading() -> None:
    items = CaptionDataset(length=3, crops=2, crop_size=32)
    for one, again in zip(items[1].captions, items[1].captions, strict=True):
        assert one == again
    item = items[2]
    assert item.crops.shape == (2, 3, 32, 32)
    assert len(item.weights) + 2 == len(item.regions) == len(item.captions)
    assert item.weights.amax() <= 1


def test_training_continues_where_it_was_interrupted(tmp_path: Path) -> None:
    whole = [losses["regions"] for _, losses in SmallClipTrainer(TINY, tmp_path / "whole").run(workers=0, save_every=1)]
    next(iter(SmallClipTrainer(TINY, tmp_path / "parts").run(workers=0, save_every=1)))
    [(iteration, rest)] = SmallClipTrainer(TINY, tmp_path / "parts").run(workers=0, save_every=1)
    assert iteration == 2
    assert rest["regions"] == pytest.approx(whole[1], rel=1e-4)


def test_accuracy_of_random_weights_is_low(weights: Path) -> None:
    classes = embed_words(CLASSES, SMALL_CLIP, str(weights), ["a {}."])
    found = measure(small_clip.load_weights(weights), classes, scenes=3, style="open_val", sizes=(64,))
    assert [*found] == ["crops seen", "crops unseen", "pooled 64 seen", "pooled 64 unseen"]
    assert all(value < 60 for value in found.values())


def test_unknown_words_are_rejected(weights: Path) -> None:
    namer = CLIPNamer(name=SMALL_CLIP, pretrained=str(weights), prompts=["a {}."], min_size=64)
    assert namer.knows(["boat", "ship"])
    assert not namer.knows(["zebra"])
    with pytest.raises(UsageError, match="'zebra'"):
        namer.check_words([("zebra",)])


@pytest.mark.parametrize("base", ["samcp_lite0", "samcp_CLIP"])
def test_training_and_evaluation_with_the_small_clip(base: str, weights: Path, tmp_path: Path) -> None:
    """Its text tower beside another backbone, and both towers."""
    config = tmp_path / "config.yaml"
    folder = Path(__file__).parents[3] / "configs" / "_base_"
    config.write_text(f"_BASE_: [{folder / base}.yaml, {folder}/small_clip.yaml]")
    with panoptic_dataset(tmp_path, "toy_words", count=2) as name:
        MetadataCatalog.get(name).vocabulary = "house, umbrella, sky, grass"
        patches = (str(tmp_path / "patches"),)
        settings = {
            "DATASETS.TRAIN": (name,),
            "DATASETS.TEST": (name,),
            "DATASETS.PATCHES_TRAIN": patches,
            "DATASETS.PATCHES_TEST": patches,
            "MODEL.DEVICE": "cpu",
            "MODEL.CLIP.PRETRAINED": weights,
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.SAMCP.HIDDEN_DIM": 32,
            "MODEL.SAMCP.NHEADS": 4,
            "MODEL.SAMCP.FFN_DIM": 32,
            "MODEL.SAMCP.ENC_LAYERS": 1,
            "MODEL.SAMCP.DEC_LAYERS": 1,
            "MODEL.SAMCP.DENOISING.MAX_QUERIES": 8,
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.MIN_SIZE_TEST": 64,
            "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 2,
            "SOLVER.STEPS": (),
            "TEST.REPORT": False,
            "OUTPUT_DIR": tmp_path / "run",
        }
        options = [str(part) for item in settings.items() for part in item]
        trainer = Trainer(load_config(training_parser(None).parse_args(["--config-file", str(config), *options])))
        assert trainer.model.class_embedding.dim == 128
        trainer.train()
        results = trainer.test(trainer.cfg, trainer.model)
    assert math.isfinite(results["panoptic_seg"]["PQ"])


def test_shipped_weights_name_crops_and_regions_of_seen_and_unseen_classes() -> None:
    cfg = get_cfg()
    add_samcp_config(cfg)
    classes = embed_words(CLASSES, SMALL_CLIP, "scenes", cfg.MODEL.SAMCP.TEXT.PROMPTS)
    found = measure(load_clip(SMALL_CLIP, "scenes"), classes, scenes=12, style="open_val", sizes=(384,))
    assert all(value > 80 for value in found.values()), found
