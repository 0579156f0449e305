"""Time and memory of the model's parts, with Mask2Former for comparison."""

import argparse
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import ImageList
from skimage import data
from skimage.transform import resize
from torch import Tensor, nn

from proposal_cache import Patches
from proposal_cache.generators.contours import ContourGenerator
from samcp import SAMCP, add_samcp_config
from samcp.benchmarks.report import Table
from samcp.benchmarks.timing import Stopwatch, peak_mb, reset_peak, time_call
from samcp.config_files import find_config
from samcp.data.patch_transforms import AxisAlignedMap, patch_instances
from samcp.modeling import affinity_decoder
from samcp.modeling.inference import Predictions
from samcp.modeling.roi_align import channels_last_on_cpu

CONFIG = "coco/panoptic/samcp_R50_12ep.yaml"
_PARTS = ("backbone", "patch_encoder", "query_builder", "decoder", "classifier", "inference")
_AFTER = "everything after the FPN"
_TARGETS = {_AFTER: "at most 0.25", "R50-FPN alone": "at least 0.67"}  # shares of the whole
_MOVED = 0.3  # fraction of instance queries with a new box in each layer
_INSTANCES, _REGIONS = 30, 10  # numbers above the panoptic threshold
_MERGED = 100  # queries
_RELEASED = "dense, maximum over membership x masks, as in the released code"
_MERGED_BOXES = affinity_decoder.merged_boxes  # before a Bench replaces it


@torch.no_grad()
def tables(arguments: argparse.Namespace) -> Iterator[Table]:
    """Measure the forward pass, the merging of patches, and the growth with patches and classes."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    yield forward_table(arguments)
    yield merging_table(arguments)
    for what, queries in (("patches", "stuff"), ("classes", "stuff"), ("classes", "all")):
        if counts := getattr(arguments, f"more_{what}"):
            yield growth_table(what, counts, arguments, queries)


def forward_table(arguments: argparse.Namespace) -> Table:
    """Measure the parts of the forward pass and other models, in turns."""
    model = build_model(load_config(arguments.device, arguments.classes, queries=arguments.queries))
    bench = Bench(model, arguments.patches, arguments.size)
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
            theirs[name].append(time_call(call))
    best = min(ours[1:], key=lambda parts: parts["whole"])
    whole, after = best["whole"], best["whole"] - best["backbone"]
    least = {name: min(seconds[1:]) for name, seconds in theirs.items()}
    parts = {name: best[name] for name in (*_PARTS, "the rest")}
    times = {**parts, _AFTER: after, "SAM-CP, whole": whole, **least}
    rows = [[name, f"{t * 1e3:.0f}", f"{t / whole:.2f}", _TARGETS.get(name, "")] for name, t in times.items()]
    if mask2former is None:
        rows.append(["Mask2Former-R50", "not measured: pip install -e '.[bench]'", "", ""])
    height, width = arguments.size
    return Table(
        "The forward pass",
        ["", "ms", "share of the whole", "target"],
        rows,
        {f"{name} / SAM-CP": seconds / whole for name, seconds in least.items()},
        f"Input {height} x {width}, {arguments.patches} patches, {arguments.classes} classes, {arguments.device}, "
        f"{torch.get_num_threads()} threads; best of {arguments.repeats}.",
    )


def merging_table(arguments: argparse.Namespace) -> Table:
    """Measure methods that merge patches into masks, at the input size."""
    patches = make_patches(arguments.patches, *arguments.size)
    inside = patches.iop(patches) > 0.8
    groups = [np.flatnonzero(inside[:, i % len(patches)]).tolist() for i in range(_MERGED)]
    masks = torch.from_numpy(patches.decode()).float()
    members = torch.zeros(_MERGED, len(patches))
    for row, group in zip(members, groups, strict=True):
        row[group] = 1
    few = min(arguments.repeats, 2)
    seconds = {
        "union of RLEs": min(time_call(lambda: patches.union(groups)) for _ in range(arguments.repeats)),
        "dense, maximum over the member masks only": min(
            time_call(lambda: [masks[group].amax(0) for group in groups]) for _ in range(few)
        ),
        _RELEASED: time_call(lambda: [(row[:, None, None] * masks).amax(0) for row in members]),
    }
    ours = seconds["union of RLEs"]
    return Table(
        "Merging patches",
        ["", "ms", "times ours", "target"],
        [
            [name, f"{value * 1e3:.1f}", f"{value / ours:.0f}", "at least 500" if name == _RELEASED else ""]
            for name, value in seconds.items()
        ],
        {name: value / ours for name, value in list(seconds.items())[1:]},
        f"{len(patches)} masks into {_MERGED} queries, {np.mean([len(g) for g in groups]):.1f} each.",
    )


def growth_table(what: str, counts: Sequence[int], arguments: argparse.Namespace, queries: str) -> Table:
    """Measure time and memory of all parts after the FPN; separate processes allow measuring the peak memory."""
    rows, seconds = [], []
    for count in counts:
        sizes = {"patches": arguments.patches, "classes": arguments.classes, what: count}
        command = [sys.executable, sys.argv[0], "model", "--measure"]
        command += ["--device", arguments.device, "--threads", str(torch.get_num_threads())]
        command += ["--repeats", str(arguments.repeats), "--size", *map(str, arguments.size)]
        command += ["--patches", str(sizes["patches"]), "--classes", str(sizes["classes"])]
        command += ["--queries", queries]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        *parts, memory = map(float, output.split()[-5:])
        seconds.append(sum(parts))
        rows.append([str(count), *(f"{p * 1e3:.0f}" for p in (*parts, sum(parts))), f"{memory:.0f}"])
    return Table(
        f"Growth with {what}, semantic queries for {queries}",
        [what, "encoder, ms", "decoder", "inference", "the rest", "all", "peak MB"],
        rows,
        note=fit_growth(what, counts, seconds),
    )


def fit_growth(what: str, counts: Sequence[int], seconds: Sequence[float]) -> str:
    """Return the note on a parabola through the times, "" for fewer counts than it needs."""
    if len(set(counts)) < 3:
        return ""
    constant, slope, quadratic = np.polynomial.Polynomial.fit(counts, seconds, 2).convert().coef * 1e3
    share = quadratic * counts[-2] ** 2 / (seconds[-2] * 1e3)
    return (
        f"Fitted: {constant:.0f} ms + {slope:.3f} ms for each of the {what} + {quadratic * 1e6:.0f} ns for each pair "
        f"of them; at {counts[-2]} the pairs take {share:.0%}."
    )


class Bench:
    """Model with timed parts and simulated training, and one input.

    Args:
        model: with random weights.
        num_patches: N.
        size: (height, width) of the input.
        parts: whether parts are timed, which makes a GPU wait between them.
    """

    def __init__(self, model: SAMCP, num_patches: int, size: Sequence[int], *, parts: bool = True) -> None:
        torch.manual_seed(0)
        self.model = model.eval()
        self.input = make_input(num_patches, size, model.roi_size)
        normalised = (self.input["image"].to(model.device) - model.pixel_mean) / model.pixel_std
        padded = ImageList.from_tensors([normalised], model.backbone.size_divisibility)
        self.pixels = channels_last_on_cpu(padded.tensor)
        self.watch = Stopwatch()
        self._simulate_training(self.input["patch_rles"])
        if not parts:
            return
        for name in _PARTS:
            part = getattr(self.model, name)
            if isinstance(part, nn.Module):
                part.forward = self.watch.timed(name, part.forward)
        self.model.inference = self.watch.timed("inference", self.model.inference)  # type: ignore[assignment]

    def run(self) -> dict[str, float]:
        """Return seconds of each part of one forward pass, of "the rest" and of the "whole"."""
        self.watch.seconds.clear()
        whole = time_call(lambda: self.model([self.input]))
        parts = {name: self.watch.seconds[name] for name in _PARTS}
        return {**parts, "the rest": whole - sum(parts.values()), "whole": whole}

    def _simulate_training(self, patches: Patches) -> None:
        """Replace merged boxes and final scores by values that resemble a trained model's."""
        random = torch.Generator().manual_seed(0)
        inference = self.model.inference
        affinity = torch.from_numpy(patches.iop(patches).T.astype(np.float32))  # (instance, patch)

        def simulated_boxes(members: Tensor, boxes: Tensor) -> Tensor:
            merged = _MERGED_BOXES(members, boxes)
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


def make_input(num_patches: int, size: Sequence[int], roi_size: int) -> dict[str, Any]:
    """Return the mapper's output for a random image with regions of a photograph as patches."""
    height, width = size
    patches = make_patches(num_patches, height * 3 // 5, width * 3 // 5)
    original = (patches.height, patches.width)
    mapping = AxisAlignedMap.from_transforms(T.ResizeTransform(*original, height, width), original, (height, width))
    return {
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
        "height": patches.height,
        "width": patches.width,
        "patches": patch_instances(patches, mapping, roi_size),
        "patch_rles": patches,
    }


def make_patches(count: int, height: int, width: int) -> Patches:
    """Return `count` regions of a photograph, with repetitions if it has fewer."""
    image = (resize(data.coffee(), (height, width)) * 255).astype(np.uint8)
    patches = ContourGenerator()(image)
    return patches.select(np.random.default_rng(0).choice(len(patches), count, replace=count > len(patches)))


def build_model(cfg: CfgNode) -> SAMCP:
    """Return the model of a config with random weights, the same in each call."""
    torch.manual_seed(0)
    return SAMCP(cfg).to(cfg.MODEL.DEVICE).eval()


def load_config(
    device: str, num_classes: int, *, queries: str = "stuff", config: str = CONFIG, tiny: bool = False
) -> CfgNode:
    """Return the config of a recipe, with other classes and without pretrained weights.

    Args:
        num_classes: C, three fifths of them things.
        queries: classes with a semantic query, "stuff" or "all".
        tiny: with a small Swin transformer.
    """
    vocabulary = f"benchmark_{num_classes}"
    things = num_classes * 80 // 133
    MetadataCatalog.get(vocabulary).set(
        stuff_classes=[f"class {i}" for i in range(num_classes)],
        thing_dataset_id_to_contiguous_id={i: i for i in range(things)},
    )
    cfg: CfgNode = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(find_config(config))
    cfg.merge_from_list(["DATASETS.TRAIN", (vocabulary,), "MODEL.DEVICE", device])
    cfg.merge_from_list(["MODEL.SAMCP.SEMANTIC_QUERIES", queries, "MODEL.SWIN.WEIGHTS", ""])
    cfg.MODEL.SAMCP.TEXT.ENCODER = "learned"  # needs no CLIP weights; the classifier costs the same
    if tiny:
        cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.DEPTHS = 24, [1, 1, 1, 1]
        cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 4, 8]
    return cfg


def _mask2former(num_classes: int) -> nn.Module | None:
    """Return Mask2Former-R50 for COCO panoptic with random weights, None if transformers is not installed."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        return None
    resnet = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.Mask2FormerConfig(backbone_config=resnet, num_labels=num_classes)
    return transformers.Mask2FormerForUniversalSegmentation(config).eval()


@torch.no_grad()
def print_measurement(arguments: argparse.Namespace) -> None:
    """Print seconds of encoder, decoder, inference and the rest without backbone, and MB above the loaded model."""
    torch.set_num_threads(arguments.threads)
    model = build_model(load_config(arguments.device, arguments.classes, queries=arguments.queries))
    bench = Bench(model, arguments.patches, arguments.size)
    features = {
        name: torch.randn(1, shape.channels, *(-(-size // shape.stride) for size in arguments.size))
        for name, shape in bench.model.backbone.output_shape().items()
    }
    features = {name: feature.to(arguments.device) for name, feature in features.items()}
    bench.model.backbone.forward = lambda _: features
    before = reset_peak(arguments.device)
    runs = [bench.run() for _ in range(arguments.repeats + 1)]
    memory = peak_mb(arguments.device) - before
    best = min(runs[1:], key=lambda parts: parts["whole"])
    parts = [best[name] for name in ("patch_encoder", "decoder", "inference")]
    print(*parts, best["whole"] - sum(parts), memory)
