"""`softcam-hub demo`: serve the demo page from this machine until Ctrl-C."""

import argparse
import socket
import threading

from .. import CAPE_LESIONS
from . import register_models

HELP = "Serve a page that explains pictures (needs the extra [demo])."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "--model",
        nargs="+",
        default=[CAPE_LESIONS],
        metavar="MODEL",
        help="Model folders, timm names or Hub ids to choose from. [a small lesions model]",
    )
    parser.add_argument("--port", type=int, metavar="N", help="Port to listen on. [the first free port from 7860]")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="Address of this machine to listen on. 127.0.0.1 is reached from this machine only, and "
        "0.0.0.0 from every machine of the network. [127.0.0.1]",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    check_address(arguments.host, arguments.port)
    register_models()
    from ..demo import open_page

    page = open_page(arguments.model, arguments.host, arguments.port)
    try:
        print(f"the page is at {page.local_url} until Ctrl-C", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
    finally:
        page.close(verbose=False)


def check_address(host: str, port: int | None) -> None:
    """Raise an error for an address that cannot be listened on, before the models are loaded."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"port must be from 1 to 65535, got {port}")
    try:
        family, socket_type, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket_type) as trial:
            # As the server does: connections that were closed a moment ago do not count.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        place = host if port is None else f"{host}:{port}"
        raise OSError(f"{place} cannot be listened on ({error.strerror}): choose another --host or --port") from error
