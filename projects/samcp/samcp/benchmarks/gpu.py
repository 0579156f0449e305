"""Speed and memory of SAM's generators and of the model on one GPU (scripts/gpu_check.sh)."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from skimage import data

from samcp.benchmarks.generation import STAGES, TINY, RegionLogits, Runner, build_model, original, ours, stage_seconds
from samcp.benchmarks.model import Bench, load_config, make_input
from samcp.benchmarks.model import build_model as build_samcp
from samcp.benchmarks.report import Table
from samcp.benchmarks.timing import peak_mb, reset_peak, time_call
from samcp.solver import build_optimizer

GENERATORS: dict[str, tuple[Callable[..., Runner], dict[str, Any]]] = {
    "segment_anything, float32": (original, {}),
    "SamGenerator, float32": (ours, {}),
    "SamGenerator, bfloat16": (ours, {"dtype": "bfloat16"}),
    "SamGenerator, bfloat16, compiled": (ours, {"dtype": "bfloat16", "compile": True}),
}
CONFIGS = {"R50": "coco/panoptic/samcp_R50_12ep.yaml", "Swin-L": "coco/panoptic/samcp_SwinL_36ep.yaml"}
TARGETS = {"vit_h": "0.25", "training": "10 images/s", "inference": "0.03"}
_SURVIVAL = 0.6  # share of masks above the threshold of predicted IoU, as in benchmark.py
_ENTITIES = 20  # of a training image


@dataclass(frozen=True)
class Size:
    """Amount of work; the same code runs in each."""

    points_per_side: int = 48
    image: tuple[int, int] = (800, 1088)
    patches: int = 150
    classes: int = 133
    batch: int = 8
    warmup: int = 2
    repeats: int = 3

    @classmethod
    def tiny(cls) -> "Size":
        """Return a size for a test on two CPU cores, which may train 20 times as slowly in bfloat16 as in float32."""
        return cls(points_per_side=6, image=(96, 128), patches=24, classes=8, batch=1, warmup=1, repeats=1)


def sam_tables(model_type: str, device: str, size: Size, tiny: bool) -> Iterator[Table]:
    """Time segment-everything with each generator; yield the table again after each row.

    Masks are counted, since all generators must find the same; the first run is the warm-up, in which PyTorch compiles.
    """
    if tiny:
        torch.compiler.set_stance("force_eager")  # compilation for a CPU takes minutes; a slow test covers it
    image = data.coffee()
    columns = ["s per image", *STAGES, "whole", "ratio", "peak GB", "first run, s", "masks", "target"]
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    peer = 0.0
    for name, (runner, options) in GENERATORS.items():
        sam = build_model(TINY if tiny else model_type, device)
        run, watch = runner(sam, RegionLogits(image, sam, _SURVIVAL), size.points_per_side, **options)
        gc.collect()  # the models of earlier rows, which are in reference cycles
        first = time_call(lambda: run(image))  # noqa: B023 (called at once)
        reset_peak(device)
        times = []
        for _ in range(size.repeats):
            watch.seconds.clear()
            masks = run(image)
            times.append(stage_seconds(watch).tolist())
        best = min(times, key=lambda seconds: seconds[-1])
        peer = peer or best[-1]
        ratios[name] = peer / best[-1]
        cells = [*(f"{seconds:.3f}" for seconds in best), f"{best[-1] / peer:.2f}", f"{peak_mb(device) / 1e3:.1f}"]
        target = TARGETS.get(model_type, "") if runner is ours else ""
        rows.append([name, *cells, f"{first:.1f}", str(masks), target])
        yield Table(
            f"Segment-everything, {model_type}, {size.points_per_side}² prompts, {device}",
            columns,
            rows,
            ratios,
            f"Random weights, simulated masks, image of 600 x 400; best of {size.repeats}.",
        )


def model_tables(backbone: str, device: str, size: Size, tiny: bool) -> Iterator[Table]:
    """Time training steps and inference without SAM in two precisions; yield the table again after each row."""
    batch = size.batch if backbone == "R50" else max(1, size.batch // 2)
    rows: list[list[str]] = []
    for work, measure in (("training", _time_training), ("inference", _time_inference)):
        for dtype in ("float32", "bfloat16"):
            gc.collect()
            reset_peak(device)
            images = batch if work == "training" else 1
            autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
            cfg = load_config(device, size.classes, config=CONFIGS[backbone], tiny=tiny)
            seconds = measure(cfg, size, images, autocast) / images
            cells = [f"{seconds:.3f}", f"{1 / seconds:.1f}", f"{peak_mb(device) / 1e3:.1f}", TARGETS[work]]
            rows.append([f"{work}, {dtype}", str(images), *cells])
            height, width = size.image
            yield Table(
                f"SAM-CP, {backbone}, {device}",
                ["", "batch", "s per image", "images per second", "peak GB", "target"],
                rows,
                note=f"Random weights, input {height} x {width}, {size.patches} patches, {size.classes} classes; best "
                f"of {size.repeats}. In training, merged boxes are those of random weights: nearly all are the whole "
                "image, so that fewer have to be pooled than by a trained model.",
            )


def _time_training(cfg: CfgNode, size: Size, batch: int, autocast: torch.autocast) -> float:
    """Return the seconds of a training step, with the loss, the gradients and the optimiser, without the loader."""
    model = build_samcp(cfg).train()
    optimizer = build_optimizer(cfg, model)
    inputs = [training_input(size, model.roi_size)] * batch

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            losses = model(inputs)
        sum(losses.values()).backward()
        optimizer.step()

    return min([time_call(step) for _ in range(size.warmup + size.repeats)][size.warmup :])


def _time_inference(cfg: CfgNode, size: Size, _: int, autocast: torch.autocast) -> float:
    """Return the seconds of an image, from its patches to the segmentations."""
    bench = Bench(build_samcp(cfg), size.patches, size.image, parts=False)
    with torch.no_grad(), autocast:
        return min([bench.run()["whole"] for _ in range(size.warmup + size.repeats)][size.warmup :])


def training_input(size: Size, roi_size: int) -> dict[str, Any]:
    """Return the mapper's output for an image whose first patches are entities, with those inside as members."""
    x = make_input(size.patches, size.image, roi_size)
    x["patches"].in_crowd = torch.zeros(size.patches, dtype=torch.bool)
    patches = x["patch_rles"]
    things = size.classes * 80 // 133  # as in load_config
    classes = torch.arange(min(_ENTITIES, things, size.classes - things, size.patches))
    for name, first in (("instances", 0), ("sem_segments", things)):
        x[name] = Instances(size.image)
        x[name].gt_classes = classes + first
        x[name].gt_boxes = x["patches"].patch_boxes[: len(classes)]
        x[name].gt_affinity = torch.from_numpy(patches.iop(patches)[:, : len(classes)].T > 0.8)
        x[name].gt_ignore = torch.zeros_like(x[name].gt_affinity)
    return x
