"""Benchmark of time and memory of SamGenerator and of segment_anything's generator."""

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from skimage import data, segmentation
from tabulate import tabulate
from torch import Tensor

from proposal_cache.generators.sam import SamGenerator, SamParameters
from proposal_cache.generators.sam.decoder import DecodedPrompts, ImageTables

THRESHOLDS: dict[str, Any] = {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.9, "box_nms_thresh": 0.7}
SCALES = (50, 200, 800)  # of felzenszwalb: subpart, part and whole
STAGES = ("encoder", "decoder", "the rest")


def main(arguments: argparse.Namespace) -> None:
    arguments.threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    if arguments.measure_memory:
        _print_memory(arguments)
        return
    image = getattr(data, arguments.picture)()
    print(
        f"{arguments.picture} {image.shape[1]}x{image.shape[0]}, {arguments.threads} threads, torch {torch.__version__}"
    )
    for model_type in arguments.model_type:
        print(f"\n{model_type}, {arguments.points_per_side} points per side")
        if arguments.repeats:
            print(_time_table(model_type, image, arguments))
        if arguments.memory_points:
            print(_memory_table(model_type, arguments))


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
        self.labels = np.zeros((3, side, side), np.int64)
        regions: list[NDArray[np.float32]] = []
        for layer, scale in enumerate(SCALES):
            labels = segmentation.felzenszwalb(small, scale=scale, sigma=0.8, min_size=20)
            self.labels[layer, : labels.shape[0], : labels.shape[1]] = labels + len(regions)
            for label in range(labels.max() + 1):
                inside = np.zeros((side, side), bool)
                inside[: labels.shape[0], : labels.shape[1]] = labels == label
                distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
                regions.append(np.clip(slope * distance, -12, 12).astype(np.float32))
        self.regions = torch.from_numpy(np.stack(regions))
        noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.noise = F.interpolate(noise, (side, side), mode="bicubic")[:, 0]

    def logits(self, points: Tensor, keep: Tensor) -> Tensor:
        """Return logits (n, side, side) of masks with keep (B, 3); points (B, 2) are in pixels of the input."""
        position = (points / self.size * self.labels.shape[1]).long().clamp(0, self.labels.shape[1] - 1).numpy()
        chosen = torch.from_numpy(self.labels[:, position[:, 1], position[:, 0]].T)[keep]
        noise = (self._seeds(points)[:, None] + torch.arange(3))[keep] % len(self.noise)
        return self.regions[chosen] + self.noise[noise]

    def predicted_iou(self, points: Tensor) -> Tensor:
        """Return predicted IoUs, (B, 3)."""
        lowest = 1 - 0.2 / self.survival
        spread = torch.frac((self._seeds(points)[:, None] * 3 + torch.arange(3)).double() * 0.6180339887498949)
        return (lowest + (1 - lowest) * spread).float()

    def _seeds(self, points: Tensor) -> Tensor:
        return (points[:, 0] * 7919 + points[:, 1] * 104729).long() % 1_000_003


class Stopwatch:
    """Seconds per stage; the stage "paused" is excluded."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def stages(self) -> NDArray[np.float64]:
        """Return seconds of STAGES, once the stage "total" has been timed."""
        rest = self.seconds["total"] - sum(self.seconds[name] for name in ("encoder", "decoder", "paused"))
        return np.array([self.seconds["encoder"], self.seconds["decoder"], rest])


def original(
    sam: Sam, regions: RegionLogits, points_per_side: int, decoded: int
) -> tuple[Callable[..., Any], Stopwatch]:
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
            logits = regions.logits(points, torch.ones((len(points), 3), dtype=torch.bool))
            return logits.unflatten(0, (-1, 3)), regions.predicted_iou(points)

    prompt_encoder, mask_decoder = sam.prompt_encoder.forward, sam.mask_decoder.forward
    sam.image_encoder.forward = watch.timed("encoder", sam.image_encoder.forward)
    sam.prompt_encoder.forward = watch.timed("decoder", prompt)
    sam.mask_decoder.forward = decode

    def run(image: NDArray[np.uint8]) -> int:
        with watch.stage("total"):
            return len(generator.generate(image))

    return run, watch


def ours(sam: Sam, regions: RegionLogits, points_per_side: int, decoded: int) -> tuple[Callable[..., Any], Stopwatch]:
    """Return SamGenerator with simulated decoder output; the decoder runs for `decoded` prompts."""
    watch = Stopwatch()
    generator = SamGenerator(sam, SamParameters(points_per_side=points_per_side, **THRESHOLDS))
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


RUNNERS = {"segment_anything": original, "SamGenerator": ours}


def _time_table(model_type: str, image: NDArray[np.uint8], arguments: argparse.Namespace) -> str:
    measured = arguments.measured_points_per_side or arguments.points_per_side
    scale = (arguments.points_per_side / measured) ** 2
    seconds: dict[str, NDArray[np.float64]] = {}
    masks: dict[str, int] = {}
    weights = _model(model_type).state_dict()
    for _ in range(arguments.repeats):
        for name, runner in RUNNERS.items():
            sam = _model(model_type)
            sam.load_state_dict(weights)
            regions = RegionLogits(image, sam, arguments.survival)
            run, watch = runner(sam, regions, measured, sys.maxsize)
            masks[name] = run(image)
            stages = watch.stages() * [1, scale, scale]
            seconds[name] = np.minimum(seconds.get(name, np.inf), np.append(stages, stages.sum()))
    assert len(set(masks.values())) == 1, f"not the same number of masks: {masks}"
    peer, own = seconds["segment_anything"], seconds["SamGenerator"]
    rows = [
        [stage, f"{a:.1f} s", f"{b:.1f} s", f"{b / a:.3f}", f"{a / b:.1f}x"]
        for stage, a, b in zip([*STAGES, "whole image"], peer, own, strict=True)
    ]
    note = f", decoder and the rest measured with {measured}² and multiplied by {scale:.3g}" if scale != 1 else ""
    print(
        f"{arguments.points_per_side}² prompts{note}; {arguments.survival:.0%} of masks pass the predicted IoU, "
        f"{masks['SamGenerator']} are left in the end; best of {arguments.repeats}"
    )
    return tabulate(rows, ["stage", *RUNNERS, "ratio", "faster"])


def _memory_table(model_type: str, arguments: argparse.Namespace) -> str:
    rows = []
    for points in arguments.memory_points:
        peaks = []
        for name in RUNNERS:
            command = [sys.executable, sys.argv[0], "--measure-memory", name, "--model-type", model_type]
            command += ["--points-per-side", str(points), "--picture", arguments.picture]
            command += ["--threads", str(arguments.threads), "--survival", str(arguments.survival)]
            command += ["--memory-prompts", str(arguments.memory_prompts)]
            peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        rows.append([f"{points}²", *(f"{peak:.0f} MB" for peak in peaks), f"{peaks[1] / peaks[0]:.3f}"])
    print(f"\nPeak memory above the loaded model; the decoder runs for the first {arguments.memory_prompts} prompts")
    return tabulate(rows, ["prompts", *RUNNERS, "ratio"])


def _print_memory(arguments: argparse.Namespace) -> None:
    """Run once in this process and print the peak memory above the loaded model in MB."""
    image = getattr(data, arguments.picture)()
    sam = _model(arguments.model_type[0])
    regions = RegionLogits(image, sam, arguments.survival)
    run, _ = RUNNERS[arguments.measure_memory](sam, regions, arguments.points_per_side, arguments.memory_prompts)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_mb("VmRSS")
    run(image)
    print(_status_mb("VmHWM") - before)


def _status_mb(name: str) -> float:
    """Return a memory size of this process from Linux: VmRSS, current, or VmHWM, peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def _model(model_type: str) -> Sam:
    torch.manual_seed(0)
    return sam_model_registry[model_type](checkpoint=None)
