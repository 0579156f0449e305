"""Training of the small CLIP by contrast of regions and captions, and its accuracy on other scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samcp.miniature import small_clip
from samcp.miniature.captions import agreement, regions_of, truth
from samcp.miniature.clip_data import CaptionDataset, CaptionedScene, cell_weights, crop, to_tensor
from samcp.miniature.scenes import STYLES, draw_scene
from samcp.miniature.world import CLASSES, SEEN
from samcp.model_zoo import SMALL_CLIP
from samcp.modeling.backbone.clip import DENSE, CLIPBackbone, mask_means
from samcp.resumable_training import ResumableTraining, Schedule

_FROZEN = 0.6  # share of the iterations after which the statistics of the batch normalization stay
_MAX_SCALE = float(np.log(100))  # of the logits, as in CLIP
_VALIDATION_SEED = 1  # training scenes have seeds of two numbers


@dataclass(frozen=True)
class ClipSchedule(Schedule):
    """Parameters of a training.

    Attributes:
        crops: per scene.
        sizes: sides in pixels to which the scenes are resized, in turn.
    """

    crops: int = 8
    sizes: tuple[int, ...] = (256, 384, 512)


class SmallClipTrainer(ResumableTraining):
    """Training of the small CLIP from random weights.

    A region is embedded from a crop of its own, as in CLIP, or by pooling its cells in the feature map of the scene,
    which is what CLIP is used for here (B.3). Both are compared with all captions of the batch.

    Args:
        schedule: parameters; a checkpoint with others is rejected.
        output: folder of the checkpoint.
    """

    network: open_clip.CLIP

    def __init__(self, schedule: ClipSchedule, output: Path) -> None:
        torch.manual_seed(schedule.seed)
        network = small_clip.build()
        network.visual.to(memory_format=torch.channels_last)
        self._tokenizer = open_clip.get_tokenizer(SMALL_CLIP)
        self._sizes = schedule.sizes
        dataset = CaptionDataset(
            length=schedule.iterations * schedule.batch,
            crops=schedule.crops,
            crop_size=network.visual.image_size[0],
            seed=schedule.seed,
        )
        super().__init__(network, network.visual, dataset, schedule, output, collate=list)

    def step(self, iteration: int, batch: Sequence[CaptionedScene]) -> dict[str, Tensor]:
        model, size = self.network, self._sizes[iteration % len(self._sizes)]
        if iteration > _FROZEN * self.schedule.iterations:
            _freeze_statistics(model)
        scenes = _features(model, resize(torch.stack([item.image for item in batch]), size))
        crops = _features(model, torch.cat([item.crops for item in batch])).mean((2, 3))
        means = []
        for features, own, item in zip(scenes, crops.split([len(item.crops) for item in batch]), batch, strict=True):
            cells = F.interpolate(item.weights[None], features.shape[1:], mode="area")[0]
            means += [mask_means(features, cells), own]
        # Once for all, since its batch normalization would see few regions otherwise.
        regions = F.normalize(model.visual.head(model.visual.trunk.head(torch.cat(means)[:, :, None, None])), dim=-1)
        captions = [caption for item in batch for caption in item.captions]
        texts = model.encode_text(self._tokenizer([caption.text for caption in captions]), normalize=True)
        scale = model.logit_scale.clamp(max=_MAX_SCALE).exp()
        pairs = truth(captions, [region for item in batch for region in item.regions])
        # Otherwise the text tower first gives all things one embedding, which it takes long to part with.
        losses = {
            "regions": contrastive_loss(scale * regions @ texts.T, *map(torch.from_numpy, pairs)),
            "texts": contrastive_loss(scale * texts @ texts.T, *map(torch.from_numpy, agreement(captions))),
        }
        sum(losses.values(), torch.zeros(())).backward()
        return {name: loss.detach() for name, loss in losses.items()} | {"scale": scale.detach()}


def contrastive_loss(logits: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """Return CLIP's loss with several true captions per region, a scalar.

    Each row and column is a softmax over its true and false pairs, whose target is the same for all true ones.

    Args:
        logits: (N, N) of regions and captions, or of captions and captions.
        true: (N, N) bool, pairs that match; those of the diagonal do.
        false: (N, N) bool, pairs that do not match; pairs that are neither are skipped.
    """
    logits = logits.masked_fill(~(true | false), -torch.inf)
    losses = []
    for dim in (0, 1):
        log_probabilities = logits.log_softmax(dim).masked_fill(~true, 0)
        losses.append(-(log_probabilities.sum(dim) / true.sum(dim)).mean())
    return (losses[0] + losses[1]) / 2


def resize(images: Tensor, size: int) -> Tensor:
    """Return images (B, 3, H, W) of any type as (B, 3, size, size) float32."""
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)


def normalize(model: open_clip.CLIP, images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) of values 0 to 255 as the model's input."""
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in _statistics(model))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def measure(
    model: open_clip.CLIP, classes: Tensor, *, scenes: int, style: str, sizes: Sequence[int]
) -> dict[str, float]:
    """Return the zero-shot accuracy in percent among all classes, of seen and of unseen ones.

    Args:
        classes: (C, D) embeddings of `CLASSES`.
        scenes: number of scenes.
        style: of the scenes.
        sizes: to which scenes are resized for pooling.

    Returns:
        "crops seen", "crops unseen", and "pooled SIZE seen", "pooled SIZE unseen" for each size.
    """
    tower = CLIPBackbone(model)
    right: dict[str, list[bool]] = {}
    for index in range(scenes):
        random = np.random.default_rng([_VALIDATION_SEED, 0, index])
        scene = draw_scene(random, STYLES[style])
        regions = [region for region in regions_of(scene) if region.name in CLASSES]
        crops = torch.stack([crop(random, scene, region, model.visual.image_size[0]) for region in regions])
        found = {"crops": F.normalize(tower.tower(normalize(model, crops)), dim=-1)}
        weights = cell_weights([region.mask for region in regions])
        for size in sizes:
            dense = tower(normalize(model, resize(to_tensor(scene.image)[None], size)))[DENSE][0]
            cells = F.interpolate(weights[None], dense.shape[1:], mode="area")[0]
            found[f"pooled {size}"] = tower.pool(dense, cells)
        for name, embeddings in found.items():
            for region, best in zip(regions, (embeddings @ classes.T).argmax(1).tolist(), strict=True):
                kind = "seen" if region.name in SEEN else "unseen"
                right.setdefault(f"{name} {kind}", []).append(CLASSES[best] == region.name)
    return {name: 100 * float(np.mean(values)) for name, values in sorted(right.items())}


def _freeze_statistics(model: open_clip.CLIP) -> None:
    """Normalize by the mean statistics of crops and scenes, as after the training; those of each differ from them."""
    for module in model.visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _features(model: open_clip.CLIP, images: Tensor) -> Tensor:
    """Return the last feature map (B, C, h, w) of images (B, 3, H, W) of values 0 to 255."""
    features: Tensor = model.visual.trunk.forward_features(normalize(model, images))
    return features


def _statistics(model: open_clip.CLIP) -> tuple[Sequence[float], Sequence[float]]:
    return model.visual.image_mean, model.visual.image_std
