"""Time of SAM's image encoder, compared with the time that its operations need at the machine's rate."""

import copy

import torch
from segment_anything.modeling import ImageEncoderViT, Sam

from proposal_cache.generators.sam.encoder import encode_image
from proposal_cache.generators.sam.generator import CPU_MEMORY_BUDGET
from samcp.benchmarks.report import Table
from samcp.benchmarks.timing import time_call

_TARGETS = {"SamGenerator": "at most 1.5"}


@torch.inference_mode()
def encoder_table(model_type: str, sam: Sam, repeats: int) -> Table:
    """Time both encoders and a product as large as those of the MLPs, in turns; the best of each counts."""
    encoder = sam.image_encoder
    side, width = encoder.img_size, encoder.patch_embed.proj.out_channels
    image = torch.randn(1, 3, side, side)
    tokens, weight = torch.randn((side // 16) ** 2, width), torch.randn(width, 4 * width)
    calls = {
        "segment_anything": lambda: encoder(image),
        "SamGenerator": lambda: encode_image(encoder, image, CPU_MEMORY_BUDGET),
        "product": lambda: tokens @ weight,
    }
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name] = min(seconds[name], time_call(call))
    operations = count_operations(encoder)
    rate = 2 * tokens.numel() * weight.shape[1] / seconds.pop("product")
    limit = operations / rate
    return Table(
        f"{model_type}, encoder",
        ["", "seconds", "times the limit", "target"],
        [
            ["limit: its operations at the rate of a large product", f"{limit:.2f}", "1", ""],
            *([name, f"{t:.2f}", f"{t / limit:.2f}", _TARGETS.get(name, "")] for name, t in seconds.items()),
        ],
        {"limit / SamGenerator": limit / seconds["SamGenerator"]},
        f"{operations / 1e12:.2f} TFLOP at {rate / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads, best of "
        f"{repeats}.",
    )


def count_operations(encoder: ImageEncoderViT) -> int:
    """Return the floating-point operations of an image, two per multiplication, with those of padded windows."""
    from torch.utils.flop_counter import FlopCounterMode  # not above: it warns if Triton is missing

    encoder = copy.deepcopy(encoder).to("meta")
    with FlopCounterMode(display=False) as counter:
        encoder(torch.empty(1, 3, encoder.img_size, encoder.img_size, device="meta"))
    return counter.get_total_flops()
