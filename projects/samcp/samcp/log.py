"""Log of a training or evaluation: progress and results on the console, everything in OUTPUT_DIR/log.txt."""

import logging
import os
import re
import sys

from detectron2.utils.logger import setup_logger

from proposal_cache.errors import reason
from samcp.errors import UsageError

logger = logging.getLogger(__name__)

# Loggers besides samcp's whose messages are of interest while a command runs. The others write environment, config,
# model, data loading and each metric several times, which is for the file only.
_ON_CONSOLE = (
    "samcp",
    "fvcore.common.checkpoint",
    "detectron2.engine.train_loop",
    "detectron2.engine.hooks",
    "detectron2.evaluation.evaluator",
    "detectron2.utils.events",
)
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")


def start_log(folder: str, rank: int) -> None:
    """Send messages to the console (rank 0) and to log.txt in a folder.

    Detectron2's `setup_logger` with the same arguments, as in its `default_setup`, then adds no second output.

    Raises:
        UsageError: the folder cannot be created.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"OUTPUT_DIR {folder} cannot be created: {reason(error)}") from error
    logging.raiseExceptions = False  # on a full disk, each message would give a traceback
    loggers = (
        setup_logger(folder, distributed_rank=rank, name="fvcore"),
        setup_logger(folder, distributed_rank=rank),
        setup_logger(folder, distributed_rank=rank, name="samcp"),
    )
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.addFilter(_is_for_console)
        elif handler.formatter is not None:
            handler.setFormatter(_PlainFormatter(handler.formatter._fmt, handler.formatter.datefmt))
    logger.info("Config, model and all messages: %s", os.path.join(folder, "log.txt"))


class _PlainFormatter(logging.Formatter):
    """Formatter without colours, which Detectron2 puts into the text of configs."""

    def format(self, record: logging.LogRecord) -> str:
        return _ESCAPE_SEQUENCE.sub("", super().format(record))


def _is_for_console(record: logging.LogRecord) -> bool:
    if record.exc_info and record.name == "detectron2.engine.train_loop":
        return False  # it raises the exception, which the command prints
    return record.levelno >= logging.WARNING or record.name.startswith(_ON_CONSOLE)
