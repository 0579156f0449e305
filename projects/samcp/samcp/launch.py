"""Start one process per GPU."""

import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import torch
from detectron2.engine import launch as detectron2_launch
from torch.multiprocessing.spawn import ProcessExitedException

_LOCAL = ("127.0.0.1", "localhost", "::1")

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

    Exits with a message if there are not as many GPUs, or if other machines cannot reach dist_url.
    """
    _check(num_gpus, **machines)
    try:
        detectron2_launch(main, num_gpus, **machines, args=args)
    except KeyboardInterrupt:  # the processes print a message
        sys.exit(1)
    except ProcessExitedException as error:
        if error.exit_code > 0:
            sys.exit(error.exit_code)
        sys.exit(f"error: {error}. {KILLED}")


def _check(num_gpus: int, num_machines: int = 1, machine_rank: int = 0, dist_url: str | None = None) -> None:
    found = torch.cuda.device_count()  # 0: the processes run on the CPU
    if 0 < found < num_gpus:
        sys.exit(f"error: --num-gpus {num_gpus}: PyTorch sees {found} GPUs on this machine")
    if not 0 <= machine_rank < num_machines:
        sys.exit(f"error: --machine-rank {machine_rank}: must be 0 to {num_machines - 1}, as --num-machines says")
    if num_machines > 1 and (dist_url in (None, "auto") or urlsplit(str(dist_url)).hostname in _LOCAL):
        sys.exit(
            f"error: --dist-url {dist_url}: other machines cannot reach it; give the address of the machine with "
            "--machine-rank 0 and a free port, such as tcp://10.0.0.1:29500, to all machines"
        )
