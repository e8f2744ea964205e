"""Download images within limits of size and of total time.

- The time limit covers everything together: name resolution, connections, redirects, headers and content. A
  server that sends one byte per second is abandoned when the time is over.
- Servers are asked for uncompressed content. Where a server compresses it all the same, the content is
  unpacked piece by piece, and the size limit holds for the unpacked bytes.
- This module follows redirects itself. The HTTP client would read the content of each redirect without a
  limit.
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

MAX_BYTES = 64 * 2**20
MAX_SECONDS = 60.0
MAX_REDIRECTS = 10

CHUNK = 64 * 2**10
"""Bytes to read or unpack at a time. Size and time are checked after each chunk."""


class DownloadError(OSError):
    """An image that could not be downloaded within the limits."""


def download(address: str, name: str | None = None, seconds: float | None = None) -> bytes:
    """Download the content of a URL, or of any other address that `fsspec` opens.

    Args:
        address: URL such as "https://host/image.png", or an fsspec address such as "s3://bucket/image.png".
        name: Name of the image in messages. The address by default.
        seconds: Total time that the download may take. `MAX_SECONDS` by default.
    """
    seconds = MAX_SECONDS if seconds is None else seconds
    name = printable(address if name is None else name)
    deadline = time.monotonic() + seconds
    sockets: list[socket.socket] = []
    is_http = address.lower().startswith(("http://", "https://"))
    chunks = _read_http(address, deadline, sockets) if is_http else _read_fsspec(address)
    try:
        return _run_with_timeout(lambda: _join(chunks, deadline), seconds)
    except Exception as error:  # clients of many protocols raise errors of many kinds
        # After the deadline the limit is the cause, whatever the client says about its own timeout.
        is_late = time.monotonic() >= deadline
        reason = f"it took longer than {seconds:g} s" if is_late else printable(error) or type(error).__name__
        raise DownloadError(f"{name} cannot be downloaded: {reason.removesuffix('.')}.") from error
    finally:
        # Shutting the sockets down ends a thread that still waits for data.
        for opened in sockets:
            with suppress(OSError):  # already closed
                opened.shutdown(socket.SHUT_RDWR)


def _run_with_timeout(read: Callable[[], bytes], seconds: float) -> bytes:
    """Run `read` in a thread, and stop waiting for it after `seconds`.

    No client limits the total time, and a thread cannot be ended from outside. An abandoned thread ends with
    its next chunk, with the client's own timeout, or because its sockets are shut down.
    """
    future: futures.Future[bytes] = futures.Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="download").start()
    return future.result(max(seconds, 0))


def _join(chunks: Iterator[bytes], deadline: float) -> bytes:
    """Join chunks to the whole content, and raise an error when size or time exceed their limits."""
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES / 2**20:g} MB")
        if time.monotonic() > deadline:
            raise futures.TimeoutError  # `download` words the message
    return bytes(content)


def _read_http(url: str, deadline: float, sockets: list[socket.socket]) -> Iterator[bytes]:
    """Yield the content of a URL in chunks.

    Args:
        url: URL to start from. Redirects are followed.
        deadline: Latest time on the monotonic clock.
        sockets: List that collects every socket that is opened.
    """

    def collect_sockets(event: str, details: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            sockets.append(details["return_value"].get_extra_info("socket"))

    options: dict[str, Any] = {
        "headers": {"Accept-Encoding": "identity", "Connection": "close"},
        "follow_redirects": False,
        "extensions": {"trace": collect_sockets},
    }
    for _ in range(MAX_REDIRECTS + 1):
        remaining = max(deadline - time.monotonic(), 0.001)
        with get_session().stream("GET", url, timeout=remaining, **options) as response:
            if response.next_request is not None:
                url = str(response.next_request.url)
                continue
            if response.status_code != 200:
                raise ValueError(f"the server answered {response.status_code} {response.reason_phrase}")
            # No chunk size here: the client would wait until a chunk is full, past the deadline.
            yield from _unpack(response.iter_raw(), response.headers.get("Content-Encoding", "identity"))
            return
    raise ValueError(f"the server redirects more than {MAX_REDIRECTS} times")


def _unpack(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Undo the compression of HTTP content, at most `CHUNK` bytes at a time."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        yield from chunks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"the server sent compressed content ({encoding}), although it was asked not to")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: the header tells gzip from zlib
    for chunk in chunks:
        while chunk and not unpacker.eof:
            yield unpacker.decompress(chunk, CHUNK)
            chunk = unpacker.unconsumed_tail
    yield unpacker.flush()  # the rest of the last chunk, a few hundred bytes
    if not unpacker.eof:
        raise ValueError("its compressed content is truncated")


def _read_fsspec(address: str) -> Iterator[bytes]:
    """Yield the content of an fsspec address in chunks."""
    import fsspec

    with fsspec.open(address, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
