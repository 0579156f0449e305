"""Time and memory of SamGenerator, compared with segment_anything's generator on the same images and weights."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide
from skimage import data, segmentation
from torch import Tensor

from proposal_cache.generators.sam import SamGenerator, SamParameters
from proposal_cache.generators.sam.decoder import DecodedPrompts, ImageTables
from samcp.benchmarks.encoder import encoder_table
from samcp.benchmarks.report import Table
from samcp.benchmarks.timing import Stopwatch, peak_mb, reset_peak

THRESHOLDS: dict[str, Any] = {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.9, "box_nms_thresh": 0.7}
SCALES = (50, 200, 800)  # of felzenszwalb: subpart, part and whole
STAGES = ("encoder", "decoder", "the rest")
_TARGETS = {"decoder": "at most 0.20", "the rest": "at most 0.10", "whole image": "at most 0.25"}  # ratios of the times
_MEMORY_TARGET = "at most 0.33"
TINY = "tiny"  # model type for tests

Runner = tuple[Callable[[NDArray[np.uint8]], int], Stopwatch]  # a generator that returns the number of masks


class RegionLogits:
    """Simulated low-resolution mask logits and predicted IoUs, which replace those of random weights.

    The three masks of a point are the regions at three scales that contain it. The logits of a region are its signed
    distance (positive inside) times `slope`, clipped to ±12, plus smooth noise of about ±1 that depends on the prompt.
    The fraction `survival` of all masks has a predicted IoU above 0.8.
    """

    def __init__(self, image: NDArray[np.uint8], sam: Sam, survival: float, slope: float = 4.0) -> None:
        self.size = sam.image_encoder.img_size
        self.survival = survival
        side = 4 * self.size // 16
        small = ResizeLongestSide(side).apply_image(image)
        all_labels = np.zeros((3, side, side), np.int64)
        regions: list[NDArray[np.float32]] = []
        for layer, scale in enumerate(SCALES):
            labels = segmentation.felzenszwalb(small, scale=scale, sigma=0.8, min_size=20)
            all_labels[layer, : labels.shape[0], : labels.shape[1]] = labels + len(regions)
            for label in range(labels.max() + 1):
                inside = np.zeros((side, side), bool)
                inside[: labels.shape[0], : labels.shape[1]] = labels == label
                distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
                regions.append(np.clip(slope * distance, -12, 12).astype(np.float32))
        noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.labels = torch.from_numpy(all_labels).to(sam.device)
        self.regions = torch.from_numpy(np.stack(regions)).to(sam.device)
        self.noise = F.interpolate(noise, (side, side), mode="bicubic")[:, 0].to(sam.device)

    def logits(self, points: Tensor, keep: Tensor) -> Tensor:
        """Return logits (n, side, side) of masks with keep (B, 3); points (B, 2) are in pixels of the input."""
        side = self.labels.shape[1]
        position = (points / self.size * side).long().clamp(0, side - 1)
        chosen = self.labels[:, position[:, 1], position[:, 0]].T[keep]
        noise = (self._seeds(points)[:, None] + torch.arange(3, device=points.device))[keep] % len(self.noise)
        return self.regions[chosen] + self.noise[noise]

    def predicted_iou(self, points: Tensor) -> Tensor:
        """Return predicted IoUs, (B, 3)."""
        lowest = 1 - 0.2 / self.survival
        number = self._seeds(points)[:, None] * 3 + torch.arange(3, device=points.device)
        return (lowest + (1 - lowest) * torch.frac(number.double() * 0.6180339887498949)).float()

    def _seeds(self, points: Tensor) -> Tensor:
        return (points[:, 0] * 7919 + points[:, 1] * 104729).long() % 1_000_003


def original(sam: Sam, regions: RegionLogits, points_per_side: int, decoded: int = sys.maxsize) -> Runner:
    """Return segment_anything's generator with simulated decoder output; the decoder runs for `decoded` prompts."""
    watch = Stopwatch()
    generator = SamAutomaticMaskGenerator(sam, points_per_side, output_mode="coco_rle", **THRESHOLDS)
    points = torch.zeros(0, 2)
    done = 0

    def prompt(**prompts: Any) -> Any:
        nonlocal points
        points = prompts["points"][0][:, 0]
        return prompt_encoder(**prompts)

    def decode(**inputs: Any) -> tuple[Tensor, Tensor]:
        nonlocal done
        if done < decoded:
            with watch.stage("decoder"):
                mask_decoder(**inputs)
        done += len(points)
        with watch.stage("paused"):
            logits = regions.logits(points, torch.ones((len(points), 3), dtype=torch.bool, device=points.device))
            return logits.unflatten(0, (-1, 3)), regions.predicted_iou(points)

    prompt_encoder, mask_decoder = sam.prompt_encoder.forward, sam.mask_decoder.forward
    sam.image_encoder.forward = watch.timed("encoder", sam.image_encoder.forward)
    sam.prompt_encoder.forward = watch.timed("decoder", prompt)
    sam.mask_decoder.forward = decode

    def run(image: NDArray[np.uint8]) -> int:
        with watch.stage("total"):
            return len(generator.generate(image))

    return run, watch


def ours(sam: Sam, regions: RegionLogits, points_per_side: int, decoded: int = sys.maxsize, **options: Any) -> Runner:
    """Return SamGenerator with simulated decoder output; the decoder runs for `decoded` prompts."""
    watch = Stopwatch()
    generator = SamGenerator(sam, SamParameters(points_per_side=points_per_side, **THRESHOLDS), **options)
    decoder = generator.decoder
    real_decode, real_logits = decoder.decode, decoder.mask_logits
    done = 0
    points_of: dict[int, Tensor] = {}

    def decode(tables: ImageTables, points: Tensor) -> DecodedPrompts:
        nonlocal done
        if done < decoded:
            with watch.stage("decoder"):
                prompts = real_decode(tables, points)
        else:
            prompts = DecodedPrompts(torch.zeros(0), torch.zeros(0), tables.initial)
        done += len(points)
        with watch.stage("paused"):
            replaced = DecodedPrompts(regions.predicted_iou(points), prompts.mask_weights, prompts.image)
        points_of.clear()
        points_of[id(replaced)] = points
        return replaced

    def mask_logits(tables: ImageTables, prompts: DecodedPrompts, keep: Tensor) -> Tensor:
        if len(prompts.mask_weights):
            with watch.stage("decoder"):
                real_logits(tables, prompts, keep)
        with watch.stage("paused"):
            height, width = (4 * side for side in tables.window)
            return regions.logits(points_of[id(prompts)], keep)[:, :height, :width].contiguous()

    generator._encode_image = watch.timed("encoder", generator._encode_image)
    decoder.tables = watch.timed("decoder", decoder.tables)  # type: ignore[method-assign]
    decoder.decode, decoder.mask_logits = decode, mask_logits  # type: ignore[method-assign]

    def run(image: NDArray[np.uint8]) -> int:
        with watch.stage("total"):
            return len(generator(image))

    return run, watch


RUNNERS: dict[str, Callable[..., Runner]] = {"segment_anything": original, "SamGenerator": ours}


def stage_seconds(watch: Stopwatch) -> NDArray[np.float64]:
    """Return the seconds of STAGES and their sum, once the stage "total" has been timed."""
    seconds = watch.seconds
    rest = seconds["total"] - sum(seconds[name] for name in ("encoder", "decoder", "paused"))
    parts = [seconds["encoder"], seconds["decoder"], rest]
    return np.array([*parts, sum(parts)])


def tables(arguments: argparse.Namespace) -> Iterator[Table]:
    """Measure each model type: time, memory, and the encoder's share of the machine's rate of operations."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for model_type in arguments.model_type:
        if arguments.repeats:
            yield time_table(model_type, arguments)
        if arguments.memory_points:
            yield memory_table(model_type, arguments)
        if arguments.encoder_repeats:
            yield encoder_table(model_type, build_model(model_type), arguments.encoder_repeats)


def time_table(model_type: str, arguments: argparse.Namespace) -> Table:
    """Compare the seconds of each stage; masks of both generators are counted and must be as many."""
    image = getattr(data, arguments.picture)()
    measured = arguments.measured_points_per_side or arguments.points_per_side
    scale = (arguments.points_per_side / measured) ** 2
    seconds: dict[str, NDArray[np.float64]] = {}
    masks: dict[str, int] = {}
    for _ in range(arguments.repeats):
        for name, runner in RUNNERS.items():
            sam = build_model(model_type)
            run, watch = runner(sam, RegionLogits(image, sam, arguments.survival), measured)
            masks[name] = run(image)
            stages = stage_seconds(watch)[:-1] * [1, scale, scale]
            seconds[name] = np.minimum(seconds.get(name, np.inf), np.append(stages, stages.sum()))
    assert len(set(masks.values())) == 1, f"not the same number of masks: {masks}"
    peer, own = seconds["segment_anything"], seconds["SamGenerator"]
    names = [*STAGES, "whole image"]
    note = f"; decoder and the rest measured with {measured}² and multiplied by {scale:.3g}" if scale != 1 else ""
    return Table(
        f"{model_type}, {arguments.points_per_side}² prompts",
        ["stage", *RUNNERS, "ratio", "target"],
        [
            [n, f"{a:.1f} s", f"{b:.1f} s", f"{b / a:.2f}", _TARGETS.get(n, "")]
            for n, a, b in zip(names, peer, own, strict=True)
        ],
        {n: float(a / b) for n, a, b in zip(names, peer, own, strict=True)},
        f"Best of {arguments.repeats}, {torch.get_num_threads()} threads; {arguments.survival:.0%} of the masks pass "
        f"the threshold of predicted IoU, {masks['SamGenerator']} remain at the end{note}.",
    )


def memory_table(model_type: str, arguments: argparse.Namespace) -> Table:
    """Compare the peak memory, in a process of its own per run."""
    rows, ratios = [], {}
    for points in arguments.memory_points:
        peaks = []
        for name in RUNNERS:
            command = [sys.executable, sys.argv[0], "generation", "--measure", name, "--model-type", model_type]
            command += ["--points-per-side", str(points), "--picture", arguments.picture]
            command += ["--threads", str(torch.get_num_threads()), "--survival", str(arguments.survival)]
            command += ["--memory-prompts", str(arguments.memory_prompts)]
            peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        ratio = f"{peaks[1] / peaks[0]:.2f}"
        rows.append([f"{points}²", *(f"{peak:.0f} MB" for peak in peaks), ratio, _MEMORY_TARGET])
        ratios[f"{points}²"] = peaks[0] / peaks[1]
    return Table(
        f"{model_type}, peak memory above the loaded model",
        ["prompts", *RUNNERS, "ratio", "target"],
        rows,
        ratios,
        f"The decoder runs for the first {arguments.memory_prompts} prompts only.",
    )


def print_measurement(arguments: argparse.Namespace) -> None:
    """Run once in this process and print the peak memory above the loaded model in MB."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    image = getattr(data, arguments.picture)()
    sam = build_model(arguments.model_type[0])
    regions = RegionLogits(image, sam, arguments.survival)
    run, _ = RUNNERS[arguments.measure](sam, regions, arguments.points_per_side, arguments.memory_prompts)
    before = reset_peak("cpu")
    run(image)
    print(peak_mb("cpu") - before)


def build_model(model_type: str, device: str = "cpu") -> Sam:
    """Return a SAM with random weights, the same in each call."""
    torch.manual_seed(0)
    if model_type != TINY:
        return sam_model_registry[model_type](checkpoint=None).to(device)
    size, grid = 256, (16, 16)
    encoder = ImageEncoderViT(
        size, embed_dim=32, depth=2, num_heads=2, use_rel_pos=True, window_size=7, global_attn_indexes=(1,)
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
    return Sam(encoder, PromptEncoder(256, grid, (size, size), mask_in_chans=16), decoder).eval().to(device)
