"""Training loop of the small SAM, and its figures on points of validation images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from proposal_cache.generators.contours.weights import load_weights
from proposal_cache.generators.sam.lite import IMAGE_SIZE, LiteEncoder, build_sam_lite
from proposal_cache.generators.sam.lite_weights import read_lite
from samcp.contours.dataset import LabelMap
from samcp.errors import CheckpointError
from samcp.resumable_training import ResumableTraining, Schedule
from samcp.small_sam.data import Draw, PromptDataset, PromptedImage, prompt_uniformly
from samcp.small_sam.losses import iou_loss, mask_iou, mask_loss

_AVERAGE = 0.998  # share of the old weights in the moving average, after some thousand iterations
_STABLE = 0.9  # stability score that the generator asks for
_OFFSET = 1.0  # of its logits


@dataclass(frozen=True)
class SamSchedule(Schedule):
    """Parameters of a training.

    Attributes:
        image_size: side of the model's input in pixels.
        points: prompts per image.
        frozen: prefixes of the backbone's layers that keep their weights.
    """

    image_size: int = IMAGE_SIZE
    points: int = 32
    frozen: tuple[str, ...] = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")


class SmallSamTrainer(ResumableTraining):
    """Training of the model type `lite`, whose encoder starts as the shipped contour network.

    Args:
        draw: images with label maps, as `PromptDataset` describes.
        schedule: parameters; a checkpoint with others is rejected.
        output: folder of the checkpoint.
        initial: weights of the model type `lite`, of any input size; None for those of the contour network.
    """

    network: Sam

    def __init__(self, draw: Draw, schedule: SamSchedule, output: Path, initial: Path | None = None) -> None:
        torch.manual_seed(schedule.seed)
        network = build_sam_lite(schedule.image_size)
        encoder = network.image_encoder
        if initial is None:
            _copy_contours(encoder)
        else:
            _copy_all(network, initial)
        encoder.to(memory_format=torch.channels_last)
        for name, parameter in encoder.backbone.named_parameters():
            parameter.requires_grad = not name.startswith(schedule.frozen)
        dataset = PromptDataset(
            draw,
            length=schedule.iterations * schedule.batch,
            image_size=schedule.image_size,
            points=schedule.points,
            seed=schedule.seed,
        )
        self._average = AveragedModel(network, avg_fn=moving_average, use_buffers=True)
        extra = {"average": self._average}
        super().__init__(network, encoder.backbone, dataset, schedule, output, extra=extra, collate=list)

    @property
    def average(self) -> Sam:
        """Moving average of the weights, which is better than the last ones."""
        return self._average.module

    def step(self, iteration: int, batch: Sequence[PromptedImage]) -> dict[str, Tensor]:
        if iteration > 1:
            self._average.update_parameters(self.network)
        embeddings = encode(self.network, batch)
        tokens = embeddings.detach().requires_grad_()  # so that the activations of one image's prompts exist at a time
        sums = dict.fromkeys(("mask", "iou"), torch.zeros(()))
        for item, embedding in zip(batch, tokens, strict=True):
            logits, predicted = decode(self.network, embedding, item.points)
            targets, exists = item.targets()
            iou = mask_iou(logits.detach(), targets, exists)
            losses = {"mask": mask_loss(logits, targets, exists), "iou": iou_loss(predicted, iou)}
            (sum(losses.values(), torch.zeros(())) / len(batch)).backward()
            sums = {name: sums[name] + losses[name].detach() / len(batch) for name in sums}
        embeddings.backward(tokens.grad)
        return sums


def encode(sam: Sam, batch: Sequence[PromptedImage]) -> Tensor:
    """Return the image embeddings (B, C, H, W)."""
    images = torch.stack([item.image for item in batch]).contiguous(memory_format=torch.channels_last)
    return sam.image_encoder((images - sam.pixel_mean) / sam.pixel_std)


def decode(sam: Sam, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Decode points (P, 2) of one image, embedding (C, H, W).

    Returns:
        Mask logits (P, 3, N) and predicted IoUs (P, 3).
    """
    labels = torch.ones(len(points), 1)
    sparse, dense = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    position = sam.prompt_encoder.get_dense_pe()
    logits, predicted = sam.mask_decoder(embedding[None], position, sparse, dense, multimask_output=True)
    return logits.flatten(2), predicted


@torch.inference_mode()
def measure(sam: Sam, items: Sequence[PromptedImage]) -> dict[str, float]:
    """Return figures of the three masks of each prompt, means over prompts.

    Returns:
        best_iou: IoU of the best mask with any annotator's region.
        mean_iou: IoU of the best mask, the mean over annotators.
        chosen_iou: IoU of the mask with the highest predicted IoU, with any annotator's region.
        iou_error: absolute error of the predicted IoUs.
        stable: share of masks with a stability score of at least 0.9.
        stable_best: the same, of the best masks.
        least_used: share of the prompts whose best mask is the one of the three that is best least often.
    """
    sam.eval()
    rows: dict[str, list[Tensor]] = {}
    for item in items:
        logits, predicted = decode(sam, encode(sam, [item])[0], item.points)
        targets, exists = item.targets()
        iou = mask_iou(logits, targets, exists)
        any_annotator = iou.amax(-1)
        best, place = any_annotator.max(1)
        stable = (_stability(logits) >= _STABLE).float()
        found = {
            "best_iou": best,
            "mean_iou": iou.amax(1).sum(1) / exists.sum(1),
            "chosen_iou": any_annotator.gather(1, predicted.argmax(1)[:, None])[:, 0],
            "iou_error": (predicted - any_annotator).abs().mean(1),
            "stable": stable.mean(1),
            "stable_best": stable.gather(1, place[:, None])[:, 0],
            "wins": F.one_hot(place, iou.shape[1]).float(),
        }
        for name, values in found.items():
            rows.setdefault(name, []).append(values)
    means = {name: torch.cat(values).mean(0) for name, values in rows.items()}
    least = means.pop("wins").min()
    return {name: value.item() for name, value in means.items()} | {"least_used": least.item()}


def validation_items(
    images: Iterable[tuple[NDArray[np.uint8], Sequence[LabelMap]]], image_size: int, points: int = 48, seed: int = 0
) -> list[PromptedImage]:
    """Return images (H, W, 3), given with their label maps, with fixed random points."""
    random = np.random.default_rng(seed)
    return [prompt_uniformly(image, maps, image_size, points, random) for image, maps in images]


def moving_average(average: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """Return the moving average after `count` updates; the initial weights, which are random, are soon forgotten."""
    return average + (new - average) * max(1 - _AVERAGE, 10 / (int(count) + 10))


def _stability(logits: Tensor) -> Tensor:
    """Return the stability score of masks (..., N), as SAM defines it, at the resolution of the logits."""
    return (logits > _OFFSET).sum(-1) / (logits > -_OFFSET).sum(-1).clamp(min=1)


def _copy_all(network: Sam, file: Path) -> None:
    """Initialize a model with weights of any input size.

    Raises:
        CheckpointError: the file is not of the model type `lite`.
    """
    try:
        tensors = read_lite(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not weights of the model type lite ({error})") from error
    tensors["image_encoder.image_size"] = network.image_encoder.image_size
    network.load_state_dict(tensors)


def _copy_contours(encoder: LiteEncoder) -> None:
    """Initialize an encoder with the parts of the shipped contour network that it has, from stride 4 on."""
    contours = load_weights(None, "cpu").network
    parts: Mapping[str, torch.nn.Module] = {
        "backbone": contours.backbone,
        "lateral": contours.lateral[1:],
        "decoder": contours.decoder[1:],
        "context": contours.context,
    }
    for name, part in parts.items():
        getattr(encoder, name).load_state_dict(part.state_dict())
