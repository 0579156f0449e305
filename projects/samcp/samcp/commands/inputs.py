"""Model and images of the commands that analyse a model."""

import argparse
from collections.abc import Sequence

from proposal_cache import PatchCache
from samcp.config import load_config
from samcp.data.build import Record, load_records
from samcp.data.datasets.custom.register import register_files
from samcp.errors import UsageError
from samcp.predictor import Predictor, default_device


def load_predictor(arguments: argparse.Namespace) -> Predictor:
    """Load --weights with the config in the file, or that of --config-file; see `command_line.add_model_options`."""
    if not arguments.config_file:
        return Predictor.from_pretrained(arguments.weights, device=arguments.device, clip=arguments.clip)
    overrides = ["MODEL.WEIGHTS", arguments.weights, "MODEL.DEVICE", arguments.device or default_device()]
    if arguments.clip:
        overrides += ["MODEL.CLIP.PRETRAINED", arguments.clip]
    options = argparse.Namespace(config_file=arguments.config_file, opts=overrides, eval_only=True)
    return Predictor.from_config(load_config(options))


def load_images(arguments: argparse.Namespace) -> tuple[list[Record], PatchCache]:
    """Load the records of --dataset and the cache of --patches; see `command_line.add_dataset_options`."""
    register_files(arguments.register)
    return load_records(arguments.dataset, str(arguments.patches), skip_failed=True)


def select_images(records: Sequence[Record], keys: Sequence[str]) -> list[Record]:
    """Return the records of some keys, in the order of the keys.

    Raises:
        UsageError: there is no image with a key.
    """
    by_key = {record["key"]: record for record in records}
    unknown = [key for key in keys if key not in by_key]
    if unknown:
        raise UsageError(f"--images {unknown[0]}: no such image; the first one is {next(iter(by_key))}")
    return [by_key[key] for key in keys]
