"""Filters for warnings that dependencies raise about their own code, which no user of this project can act on.

`import samcp` applies them, so import it before Detectron2. They come last in the list of filters: the options of
``python -W``, PYTHONWARNINGS and filters of an application take precedence.
"""

import logging
import warnings


def ignore_upstream_warnings() -> None:
    """Ignore the known warnings of fvcore, Detectron2, timm and its dependencies."""
    # fvcore/nn/focal_loss.py and detectron2/modeling/box_regression.py compile functions when they are imported.
    _ignore(FutureWarning, "`torch.jit.script", r"torch\.jit\._script")
    # detectron2/modeling/backbone/{swin,vit,mvit}.py import timm.models.layers, the old name of timm.layers.
    _ignore(FutureWarning, "Importing from timm.models.layers", r"timm\.models\.layers")
    # detectron2/model_zoo/model_zoo.py imports pkg_resources.
    _ignore(UserWarning, "pkg_resources is deprecated", r"detectron2\.model_zoo\.model_zoo")
    # detectron2/modeling/backbone/swin.py and anchor_generator.py call torch.meshgrid without `indexing`.
    _ignore(UserWarning, "torch.meshgrid", r"torch\.functional")
    # huggingface_hub, which timm imports, asks for notebook widgets that only draw its progress bars.
    _ignore(Warning, "IProgress not found", r"tqdm\.auto")
    # detectron2/utils/tracing.py asks is_fx_tracing, and torch.fx logs that it means two things.
    _drop("torch.fx._symbolic_trace", "is_fx_tracing will return true")
    # detectron2/utils/collect_env.py imports torch.utils.cpp_extension, which looks for a CUDA compiler.
    _drop("torch.utils.cpp_extension", "No CUDA runtime is found")


def _ignore(category: type[Warning], message: str, module: str) -> None:
    """Ignore warnings of `category` that begin with `message` and come from a module that matches `module`."""
    warnings.filterwarnings("ignore", message, category, module, append=True)


def _drop(logger: str, message: str) -> None:
    """Drop the messages of a logger that begin with `message`."""
    logging.getLogger(logger).addFilter(lambda record: not str(record.msg).startswith(message))
