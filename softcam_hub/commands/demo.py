"""`softcam-hub demo`: the demo page, served from this machine until Ctrl-C."""

import argparse
import socket
import threading

from .. import CAPE_LESIONS

HELP = "serve a page on which pictures are explained (needs the extra [demo])"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        nargs="+",
        default=[CAPE_LESIONS],
        metavar="MODEL",
        help="model folders, timm names or Hub ids to choose from [a small lesions model]",
    )
    parser.add_argument("--port", type=int, help="port to listen on [the first free one from 7860]")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all [this machine only]")


def run(arguments: argparse.Namespace) -> None:
    check_address(arguments.host, arguments.port)
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
    """Refuse what cannot be listened on, before the models are loaded."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"port must be from 1 to 65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: closed connections linger
            trial.bind(address)
    except OSError as error:
        where = host if port is None else f"{host}:{port}"
        raise OSError(f"{where} cannot be listened on ({error.strerror}): choose another --host or --port") from error
