"""Page for a browser that segments photographs by words."""

import argparse
import importlib.util
import signal
import threading
import webbrowser

from samcp.commands.segment import load_predictor, patch_generator
from samcp.errors import UsageError, exit_with_message


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message(ValueError, OSError, interrupted="stopped"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("samcp web needs Gradio; install it by: pip install -e '.[web]' in the checkout")
    from samcp.web.server import check_port, serve

    if arguments.port is not None:
        check_port(arguments.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # delete the files of visitors also if it is terminated
    print("Loading the model, and segmenting the first example ...", flush=True)
    predictor = load_predictor(arguments)
    predictor.generator = patch_generator(arguments, predictor)
    with serve(predictor, port=arguments.port, share=arguments.share) as address:
        print(f"The page is at {address} (Ctrl-C stops it)", flush=True)
        if arguments.open:
            webbrowser.open(address)
        threading.Event().wait()
