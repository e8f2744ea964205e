"""Images from the network, within limits of size and of total time.

- The time limit holds for everything together: names, connections, redirects, headers and content. A server that sends
  one byte per second is left when the time is over.
- Servers are asked for uncompressed content. Where one compresses it all the same, it is unpacked piece by piece, and
  the size limit holds for what comes out.
- Redirects are followed here, not by the HTTP client, which would read the content of each redirect without a limit.
"""

import socket
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress
from threading import Thread
from typing import Any

from huggingface_hub import get_session

from .text import printable

MOST_BYTES = 64 * 2**20
MOST_SECONDS = 60.0
MOST_REDIRECTS = 10

PIECE = 64 * 2**10
"""Bytes to unpack at a time; size and clock are looked at in between."""


class DownloadError(OSError):
    """An image that the network did not give within the limits."""


def download(address: str, name: str | None = None, seconds: float | None = None) -> bytes:
    """Read the content of a URL, or of anything else that `fsspec` opens.

    Args:
        address: URL such as "https://host/image.png", or an fsspec address such as "s3://bucket/image.png".
        name: Name of the image in messages; the address by default.
        seconds: Total time that the download may take; `MOST_SECONDS` by default.
    """
    seconds = MOST_SECONDS if seconds is None else seconds
    name = printable(address if name is None else name)
    deadline = time.monotonic() + seconds
    sockets: list[socket.socket] = []
    is_http = address.lower().startswith(("http://", "https://"))
    pieces = _read_http(address, deadline, sockets) if is_http else _read_fsspec(address)
    try:
        return _within(seconds, lambda: _join(pieces, deadline))
    except Exception as error:  # clients of many protocols raise errors of many kinds
        # past the deadline the cause is the limit, whatever the client's own timeout says
        is_late = time.monotonic() >= deadline
        reason = f"it took longer than {seconds:g} s" if is_late else printable(error) or type(error).__name__
        raise DownloadError(f"{name} cannot be downloaded: {reason.removesuffix('.')}.") from error
    finally:
        for one in sockets:
            with suppress(OSError):  # it is closed already
                one.shutdown(socket.SHUT_RDWR)


def _within(seconds: float, read: Callable[[], bytes]) -> bytes:
    """Run `read` in a thread and wait for it at most so long.

    No client has a limit of total time, and a thread cannot be ended from outside. One that is no longer waited for
    ends with its next piece, with the client's timeout, or because its sockets are shut down.
    """
    future: futures.Future[bytes] = futures.Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="download").start()
    return future.result(max(seconds, 0))


def _join(pieces: Iterator[bytes], deadline: float) -> bytes:
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES / 2**20:g} MB")
        if time.monotonic() > deadline:
            raise futures.TimeoutError  # `download` says it in words
    return bytes(content)


def _read_http(url: str, deadline: float, sockets: list[socket.socket]) -> Iterator[bytes]:
    """Yield the content of a URL.

    Args:
        url: Where to begin; redirects are followed.
        deadline: Time on the monotonic clock.
        sockets: List that gets every socket that is opened.
    """

    def trace(event: str, details: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            sockets.append(details["return_value"].get_extra_info("socket"))

    headers = {"Accept-Encoding": "identity", "Connection": "close"}
    options: dict[str, Any] = {"headers": headers, "follow_redirects": False, "extensions": {"trace": trace}}
    for _ in range(MOST_REDIRECTS + 1):
        left = max(deadline - time.monotonic(), 0.001)
        with get_session().stream("GET", url, timeout=left, **options) as response:
            if response.next_request is not None:
                url = str(response.next_request.url)
                continue
            if response.status_code != 200:
                raise ValueError(f"the server answered {response.status_code} {response.reason_phrase}")
            # with a size of pieces, the client would wait until one is full
            yield from _unpacked(response.iter_raw(), response.headers.get("Content-Encoding", "identity"))
            return
    raise ValueError(f"the server redirects more than {MOST_REDIRECTS} times")


def _unpacked(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Undo the compression of HTTP content, at most `PIECE` bytes at a time."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"the server sent it compressed ({encoding}), although it was asked not to")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: the header tells gzip from zlib
    for piece in pieces:
        while piece and not unpacker.eof:
            yield unpacker.decompress(piece, PIECE)
            piece = unpacker.unconsumed_tail
    yield unpacker.flush()  # what did not fit into the last piece, a few hundred bytes
    if not unpacker.eof:
        raise ValueError("its compressed content is truncated")


def _read_fsspec(address: str) -> Iterator[bytes]:
    import fsspec

    with fsspec.open(address, "rb") as file:
        while piece := file.read(PIECE):
            yield piece
