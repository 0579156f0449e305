"""Server of the page."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from proposal_cache.errors import reason
from samcp.errors import UsageError
from samcp.predictor import Predictor
from samcp.web import session as events
from samcp.web.app import CSS, THEME, Page

HOST = "127.0.0.1"  # reachable from this machine only

_USERS = 2  # events that compute at the same time; others wait
_WAITING = 32  # events; further ones get a message
_SESSIONS = 100  # visitors whose state is kept


def check_port(port: int) -> None:
    """Raise UsageError if a port cannot be used."""
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            trial.bind((HOST, port))
    except OSError as error:
        raise UsageError(
            f"--port {port} cannot be used ({reason(error)}); choose another one, or omit --port"
        ) from error


@contextmanager
def serve(predictor: Predictor, *, port: int | None = None, share: bool = False) -> Iterator[str]:
    """Serve the page while the block runs, with the first example ready; yields its address.

    Args:
        port: default: the first free one from 7860.
        share: also make a public address through Gradio's servers.

    Raises:
        UsageError: the port cannot be used, or none is free.
    """
    with TemporaryDirectory(prefix="samcp-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # so that uploads and pictures are deleted when the server stops
        page = Page(predictor, Path(folder))
        page.example(0)
        page.blocks.queue(default_concurrency_limit=_USERS, max_size=_WAITING, api_open=False)
        try:
            _, address, public = page.blocks.launch(
                css=CSS,
                theme=THEME,
                footer_links=[],
                max_file_size=events.MAX_BYTES,
                prevent_thread_lock=True,
                quiet=True,
                run_history=False,
                server_name=HOST,
                server_port=port,
                share=share,
                ssr_mode=False,
                state_session_capacity=_SESSIONS,
            )
        except OSError as error:
            found = "no port is free" if port is None else f"port {port} is in use"
            raise UsageError(f"{found}; choose another one by --port") from error
        try:
            yield public or address
        finally:
            page.blocks.close()
