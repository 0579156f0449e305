"""Start one process per GPU."""

import sys
from collections.abc import Callable
from typing import Any

from detectron2.engine import launch as detectron2_launch
from torch.multiprocessing.spawn import ProcessExitedException

# For messages about a process that a signal has killed.
KILLED = (
    "Unless you sent the signal, the likely cause is that memory ran out or, for SIGBUS, /dev/shm, which data loaders "
    "use; use a smaller SOLVER.IMS_PER_BATCH, fewer DATALOADER.NUM_WORKERS or fewer processes"
)


def launch(main: Callable[..., object], num_gpus: int, *, args: tuple[Any, ...], **machines: Any) -> None:
    """Call ``main(*args)`` in each process by Detectron2's launch.

    If a process exits with a message, or all by Ctrl-C, the exit status is not 0 and there is no second traceback. If a
    signal kills a process, the message names the likely cause.

    Args:
        main: the function to run.
        num_gpus: processes on this machine.
        args: arguments of ``main``.
        machines: num_machines, machine_rank and dist_url, as Detectron2's launch takes them.
    """
    try:
        detectron2_launch(main, num_gpus, **machines, args=args)
    except KeyboardInterrupt:  # the processes print a message
        sys.exit(1)
    except ProcessExitedException as error:
        if error.exit_code > 0:
            sys.exit(error.exit_code)
        sys.exit(f"error: {error}. {KILLED}")
