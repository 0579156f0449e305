"""Two processes with a process group on the CPU."""

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed
import torch.multiprocessing
from detectron2.utils import comm


def run_in_two_processes(main: Callable[..., None], folder: Path, *args: Any) -> None:
    """Call ``main(rank, folder, *args)`` in two processes; `folder` is for the rendezvous and for their results."""
    torch.multiprocessing.spawn(_run, (main, folder, args), nprocs=2)


def _run(rank: int, main: Callable[..., None], folder: Path, args: tuple[Any, ...]) -> None:
    faulthandler.enable()  # an abort prints where it happened
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the host name need not resolve
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    main(rank, folder, *args)
    torch.distributed.barrier()  # neither closes its connections while the other uses them
    torch.distributed.destroy_process_group()
