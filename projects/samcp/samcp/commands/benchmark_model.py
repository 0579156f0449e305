"""Benchmark of time and memory of the model's parts, with Mask2Former for comparison."""

import argparse
import importlib
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import ImageList
from skimage import data
from skimage.transform import resize
from tabulate import tabulate
from torch import Tensor, nn

from proposal_cache import Patches
from proposal_cache.generators.contours import ContourGenerator
from samcp import SAMCP, add_samcp_config
from samcp.config_files import find_config
from samcp.data.patch_transforms import AxisAlignedMap, patch_instances
from samcp.modeling import affinity_decoder
from samcp.modeling.inference import Predictions
from samcp.modeling.roi_align import channels_last_on_cpu

_CONFIG = "coco/panoptic/samcp_R50_12ep.yaml"
_PARTS = ("backbone", "patch_encoder", "query_builder", "decoder", "classifier", "inference")
_MOVED = 0.3  # fraction of instance queries with a new box in each layer
_INSTANCES, _REGIONS = 30, 10  # numbers above the panoptic threshold
_MERGED = 100  # queries


def main(arguments: argparse.Namespace) -> None:
    arguments.threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    if arguments.measure:
        _print_one_measurement(arguments)
        return
    height, width = arguments.size
    print(
        f"{arguments.device}, {arguments.threads} threads, torch {torch.__version__}; input {height} x {width}, "
        f"{arguments.patches} patches, {arguments.classes} classes; best of {arguments.repeats}\n"
    )
    print(forward_table(arguments), "\n")
    print(merging_table(arguments), "\n")
    for what, queries in (("patches", "stuff"), ("classes", "stuff"), ("classes", "all")):
        if counts := getattr(arguments, f"more_{what}"):
            print(f"semantic queries: {queries}\n{growth_table(what, counts, arguments, queries)}\n")


def forward_table(arguments: argparse.Namespace) -> str:
    """Return a table of the parts of the forward pass and of other models."""
    bench = Bench(arguments, arguments.patches, arguments.classes)
    peers: dict[str, Callable[[], Any]] = {"R50-FPN alone": lambda: bench.model.backbone(bench.pixels)}
    mask2former = _mask2former(arguments.classes)
    if mask2former is not None:
        mask2former.to(arguments.device)
        peers["Mask2Former-R50"] = lambda: mask2former(pixel_values=bench.pixels)
    ours: list[dict[str, float]] = []
    theirs: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.repeats + 1):  # the first round warms up
        ours.append(bench.run())
        for name, call in peers.items():
            theirs[name].append(bench.time(call))
    best = min(ours[1:], key=lambda parts: parts["whole"])
    whole, after = best["whole"], best["whole"] - best["backbone"]
    rows = [[name, f"{best[name] * 1e3:.0f}", f"{best[name] / whole:.3f}"] for name in (*_PARTS, "the rest")]
    rows += [["everything after the FPN", f"{after * 1e3:.0f}", f"{after / whole:.3f}"]]
    rows += [["SAM-CP, whole", f"{whole * 1e3:.0f}", "1"]]
    for name, seconds in theirs.items():
        least = min(seconds[1:])
        rows.append([name, f"{least * 1e3:.0f}", f"{least / whole:.3f}"])
        rows.append([f"SAM-CP / {name}", "", f"{whole / least:.3f}"])
    if mask2former is None:
        rows.append(["Mask2Former-R50", "not measured: pip install -e '.[bench]'", ""])
    return tabulate(rows, ["", "ms", "of the whole"])


def merging_table(arguments: argparse.Namespace) -> str:
    """Return a table of methods that merge patches into masks, at the input size."""
    patches = make_patches(arguments.patches, *arguments.size)
    inside = patches.iop(patches) > 0.8
    groups = [np.flatnonzero(inside[:, i % len(patches)]).tolist() for i in range(_MERGED)]
    masks = torch.from_numpy(patches.decode()).float()
    clock = Bench.time

    def dense() -> list[Tensor]:
        return [masks[group].amax(0) for group in groups]

    by_rle = min(clock(lambda: patches.union(groups)) for _ in range(arguments.repeats))
    by_mask = min(clock(dense) for _ in range(min(arguments.repeats, 2)))
    members = torch.zeros(_MERGED, len(patches))
    for row, group in zip(members, groups, strict=True):
        row[group] = 1

    def weighted() -> list[Tensor]:
        return [(row[:, None, None] * masks).amax(0) for row in members]

    by_product = clock(weighted)
    rows = [
        ["RLE union", f"{by_rle * 1e3:.1f}", "1"],
        ["dense, maximum over the members' masks", f"{by_mask * 1e3:.0f}", f"{by_mask / by_rle:.0f}"],
        ["dense, maximum over membership x masks", f"{by_product * 1e3:.0f}", f"{by_product / by_rle:.0f}"],
    ]
    title = f"{len(patches)} masks into {_MERGED} queries, {np.mean([len(g) for g in groups]):.1f} each"
    return tabulate(rows, [title, "ms", "times ours"])


def growth_table(what: str, counts: Sequence[int], arguments: argparse.Namespace, queries: str) -> str:
    """Return time and memory of all parts after the FPN; separate processes allow measuring the peak memory."""
    rows, seconds = [], []
    for count in counts:
        sizes = {"patches": arguments.patches, "classes": arguments.classes, what: count}
        command = [sys.executable, sys.argv[0], "--measure"]
        command += ["--device", arguments.device, "--threads", str(arguments.threads)]
        command += ["--repeats", str(arguments.repeats), "--size", *map(str, arguments.size)]
        command += ["--patches", str(sizes["patches"]), "--classes", str(sizes["classes"])]
        command += ["--queries", queries]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        *parts, memory = map(float, output.split()[-5:])
        seconds.append(sum(parts))
        rows.append([count, *(f"{p * 1e3:.0f}" for p in (*parts, sum(parts))), f"{memory:.0f}"])
    table = tabulate(rows, [what, "encoder", "decoder", "inference", "the rest", "all, ms", "peak MB"])
    constant, slope, quadratic = np.polynomial.Polynomial.fit(counts, seconds, 2).convert().coef * 1e3
    share = quadratic * counts[-2] ** 2 / (seconds[-2] * 1e3)
    return (
        f"{table}\nfitted: {constant:.0f} ms + {slope:.3f} ms for each of the {what} + "
        f"{quadratic * 1e6:.0f} ns for each pair of them; at {counts[-2]} the pairs take {share:.0%}"
    )


class Bench:
    """Model with random weights and timed parts, and one input.

    Args:
        arguments: of the command line.
        num_patches, num_classes: N, C.
    """

    def __init__(self, arguments: argparse.Namespace, num_patches: int, num_classes: int) -> None:
        torch.manual_seed(0)
        self.device = arguments.device
        self.model = _build_model(arguments.device, num_classes, arguments.queries)
        height, width = arguments.size
        patches = make_patches(num_patches, height * 3 // 5, width * 3 // 5)
        size = (patches.height, patches.width)
        mapping = AxisAlignedMap.from_transforms(T.ResizeTransform(*size, height, width), size, (height, width))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        self.input = {
            "image": image,
            "height": size[0],
            "width": size[1],
            "patches": patch_instances(patches, mapping, self.model.roi_size),
            "patch_rles": patches,
        }
        normalised = (image.to(self.device) - self.model.pixel_mean) / self.model.pixel_std
        padded = ImageList.from_tensors([normalised], self.model.backbone.size_divisibility)
        self.pixels = channels_last_on_cpu(padded.tensor)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._simulate_training(patches)
        for name in _PARTS:
            part = getattr(self.model, name)
            if isinstance(part, nn.Module):
                part.forward = self._timed(name, part.forward)
        self.model.inference = self._timed("inference", self.model.inference)  # type: ignore[assignment]

    def run(self) -> dict[str, float]:
        """Return seconds of each part of one forward pass, of "the rest" and of the "whole"."""
        self.seconds.clear()
        whole = self.time(lambda: self.model([self.input]))
        parts = {name: self.seconds[name] for name in _PARTS}
        paused = self.seconds["paused"]
        return {**parts, "the rest": whole - paused - sum(parts.values()), "whole": whole - paused}

    @staticmethod
    def time(call: Callable[[], Any]) -> float:
        """Return seconds of a call, including its work on a GPU."""
        _synchronize()
        start = time.perf_counter()
        call()
        _synchronize()
        return time.perf_counter() - start

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._clock(name):
                return function(*args, **kwargs)

        return call

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        _synchronize()
        start = time.perf_counter()
        yield
        _synchronize()
        self.seconds[name] += time.perf_counter() - start

    def _simulate_training(self, patches: Patches) -> None:
        """Replace merged boxes and final scores by values that resemble a trained model's."""
        random = torch.Generator().manual_seed(0)
        merged_boxes, inference = affinity_decoder.merged_boxes, self.model.inference
        affinity = torch.from_numpy(patches.iop(patches).T.astype(np.float32))  # (instance, patch)

        def simulated_boxes(members: Tensor, boxes: Tensor) -> Tensor:
            merged = merged_boxes(members, boxes)
            count = boxes.shape[1]
            moved = torch.rand(count, generator=random) < _MOVED
            shift = torch.rand(count, 1, generator=random) * 0.05 * moved[:, None]
            merged[:, -count:] = (boxes - shift.to(boxes.device)).clamp(0, 1)
            merged[:, :-count] = torch.tensor([0.0, 0, 1, 1])
            return merged

        def segment(predictions: Predictions, rles: Patches) -> dict[str, object]:
            confident = replace(
                predictions,
                semantic_scores=_scores(predictions.semantic_scores, _REGIONS),
                semantic_affinity=torch.rand(predictions.semantic_affinity.shape, generator=random),
                instance_scores=_scores(predictions.instance_scores, _INSTANCES),
                instance_affinity=affinity,
            )
            return inference(confident, rles)

        affinity_decoder.merged_boxes = simulated_boxes
        self.model.inference = segment  # type: ignore[assignment]


def _scores(like: Tensor, num_confident: int) -> Tensor:
    """Return scores of the shape of `like`, at most 0.05, but 0.9 for class 0 of about `num_confident` queries."""
    scores = torch.rand(like.shape) * 0.05
    chosen = scores[:: max(1, len(scores) // num_confident)]
    chosen.view(len(chosen), -1)[:, 0] = 0.9
    return scores


def make_patches(count: int, height: int, width: int) -> Patches:
    """Return `count` regions of a photograph, with repetitions if it has fewer."""
    image = (resize(data.coffee(), (height, width)) * 255).astype(np.uint8)
    patches = ContourGenerator()(image)
    return patches.select(np.random.default_rng(0).choice(len(patches), count, replace=count > len(patches)))


def _build_model(device: str, num_classes: int, queries: str) -> SAMCP:
    vocabulary = f"benchmark_{num_classes}"
    things = num_classes * 80 // 133
    MetadataCatalog.get(vocabulary).set(
        stuff_classes=[f"class {i}" for i in range(num_classes)],
        thing_dataset_id_to_contiguous_id={i: i for i in range(things)},
    )
    cfg: CfgNode = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(find_config(_CONFIG))
    cfg.merge_from_list(["DATASETS.TRAIN", (vocabulary,), "MODEL.DEVICE", device])
    cfg.merge_from_list(["MODEL.SAMCP.SEMANTIC_QUERIES", queries])
    cfg.MODEL.SAMCP.TEXT.ENCODER = "learned"  # needs no CLIP weights; the classifier costs the same
    return SAMCP(cfg).to(device).eval()


def _mask2former(num_classes: int) -> nn.Module | None:
    """Return Mask2Former-R50 for COCO panoptic with random weights, None if transformers is not installed."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        return None
    resnet = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.Mask2FormerConfig(backbone_config=resnet, num_labels=num_classes)
    return transformers.Mask2FormerForUniversalSegmentation(config).eval()


def _print_one_measurement(arguments: argparse.Namespace) -> None:
    """Print seconds of encoder, decoder, inference and the rest without backbone, and MB above the loaded model."""
    bench = Bench(arguments, arguments.patches, arguments.classes)
    features = {
        name: torch.randn(1, shape.channels, *(-(-size // shape.stride) for size in arguments.size))
        for name, shape in bench.model.backbone.output_shape().items()
    }
    features = {name: feature.to(arguments.device) for name, feature in features.items()}
    bench.model.backbone.forward = lambda _: features
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_mb("VmRSS")
    runs = [bench.run() for _ in range(arguments.repeats + 1)]
    memory = _status_mb("VmHWM") - before
    if arguments.device.startswith("cuda"):
        memory = torch.cuda.max_memory_allocated() / 1e6
    best = min(runs[1:], key=lambda parts: parts["whole"])
    parts = [best[name] for name in ("patch_encoder", "decoder", "inference")]
    print(*parts, best["whole"] - sum(parts), memory)


def _status_mb(name: str) -> float:
    """Return a memory size of this process from Linux: VmRSS, current, or VmHWM, peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
