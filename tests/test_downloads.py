"""Downloads of images from a real server on 127.0.0.1 stay within limits, or are refused with a sentence."""

import socket
import threading
import time

import pytest
from helpers.failing_server import GOOD, MOST, STOP, FailingHandler, FailingServer

from softcam_hub.models import downloads
from softcam_hub.models.downloads import DownloadError, download
from softcam_hub.models.images import UnreadableImage
from softcam_hub.models.inputs import read_image

LIMITS = (downloads.MAX_BYTES, downloads.MAX_SECONDS)


SECONDS = 0.4
"""Time limit of the slow downloads in these tests."""


@pytest.fixture(scope="module")
def server():
    server = FailingServer(("127.0.0.1", 0), FailingHandler)
    server.accepted = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    STOP.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def _limits(monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES", MOST)
    monkeypatch.setattr(downloads, "MAX_SECONDS", 5.0)


def test_the_limits_are_those_that_the_documentation_names():
    assert (LIMITS, downloads.MAX_REDIRECTS) == ((64 * 2**20, 60.0), 10)


@pytest.mark.parametrize("kind", ["good", "nolength", "chunked", "gzip", "deflate", "redirect/10", "just"])
def test_good_answers_are_read(url, kind):
    assert download(f"{url}/{kind}").startswith(GOOD)
    assert read_image(f"{url}/{kind}", None).size == (12, 10)


def test_servers_are_asked_for_plain_content(url, server):
    read_image(f"{url}/good", None)
    assert set(server.accepted) == {"identity"}


def test_the_content_of_a_redirect_is_not_read(url):
    assert read_image(f"{url}/bomb_of_a_redirect", None).size == (12, 10)


FAILED_DOWNLOADS = {
    "status/404": "the server answered 404 Not Found",
    "status/403": "the server answered 403 Forbidden",
    "status/410": "the server answered 410 Gone",
    "status/429": "the server answered 429",
    "status/500": "the server answered 500 Internal Server Error",
    "status/503": "the server answered 503 Service Unavailable",
    "status/206": "the server answered 206 Partial Content",
    "escape": r"the server answered 404 \x1b[31mred",
    "loop": "the server redirects more than 10 times",
    "redirect/11": "the server redirects more than 10 times",
    "to/file:///etc/hostname": "protocol",
    "to/ftp://127.0.0.1/x.png": "protocol",
    "truncated": "without sending complete message body",
    "half_chunk": "without sending complete message body",
    "large": "it has more than 0.0953674 MB",
    "endless": "it has more than 0.0953674 MB",
    "gzip_bomb": "it has more than 0.0953674 MB",
    "gzip_cut": "its compressed content is truncated",
    "gzip_wrong": "incorrect header check",
    "brotli": "the server sent compressed content (br), although it was asked not to",
    "twice": "the server sent compressed content (gzip, gzip)",
    "no_http": "",
    "nothing": "without sending a response",
}
"""Path -> reason of the `DownloadError`."""

UNREADABLE_IMAGES = {
    "page": "it is not an image of a supported format",
    "postscript": "it is not an image of a supported format",
    "empty": "it is not an image",
    "cut": "image file is truncated",
    "pixels": "it has 9000×9000 = 81 million pixels",
    "bomb": "it has more than 50 million pixels",
    "ribbon": "it has 1×20000 pixels, and the longer side may be at most 20 times the shorter",
}
"""Path -> reason of the `UnreadableImage`."""


@pytest.mark.parametrize("path", [*FAILED_DOWNLOADS, *UNREADABLE_IMAGES])
def test_bad_answers_are_refused_with_a_sentence(url, path):
    with pytest.raises((DownloadError, UnreadableImage)) as caught:
        read_image(f"{url}/{path}", None)
    message = str(caught.value)
    if path in FAILED_DOWNLOADS:
        assert message.startswith(f"{url}/{path} cannot be downloaded: ")
        assert FAILED_DOWNLOADS[path] in message
    else:
        assert message.startswith(f"{url}/{path} cannot be read: {UNREADABLE_IMAGES[path]}")
    assert message.isprintable()
    assert message.endswith(".")


SLOW = ["silence", "drip", "drip_of_headers", "announced", "slow_redirects/0"]


@pytest.mark.parametrize("kind", SLOW)
def test_slow_downloads_end_at_the_time_limit(url, kind, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_REDIRECTS", 1000)
    began = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        read_image(f"{url}/{kind}", SECONDS)
    assert SECONDS <= time.monotonic() - began < SECONDS + 1
    assert str(caught.value) == f"{url}/{kind} cannot be downloaded: it took longer than {SECONDS} s."


def test_the_content_of_a_slow_redirect_is_not_waited_for(url):
    with pytest.raises(DownloadError, match="took longer than 0.4 s"):
        read_image(f"{url}/drip_of_a_redirect", SECONDS)


def test_the_time_limit_has_a_default(url, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_SECONDS", SECONDS)
    with pytest.raises(DownloadError, match="took longer than 0.4 s"):
        read_image(f"{url}/drip", None)


@pytest.mark.parametrize("kind", SLOW)
def test_an_abandoned_download_thread_ends(url, kind):
    before = set(threading.enumerate())
    with pytest.raises(DownloadError):
        read_image(f"{url}/{kind}", 0.1)
    for thread in set(threading.enumerate()) - before:
        if thread.name == "download":
            thread.join(5)
            assert not thread.is_alive()


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/x.png",
        "http://",
        "https://",
        "http:///x.png",
        "http://127.0.0.1:99999/x.png",
        "http://[::1/x.png",
        "http://127.0.0.1:{port}/\x1b[31m\n.png",
        "http://caf\udce9.invalid/x.png",
        "HTTP://127.0.0.1:{port}/x.png",
    ],
)
def test_unreachable_addresses_are_refused(address):
    address = address.replace("://127", "://me:secret@127")
    with pytest.raises(DownloadError) as caught:
        read_image(address.format(port=closed_port()), None)
    assert "cannot be downloaded: " in str(caught.value)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)
