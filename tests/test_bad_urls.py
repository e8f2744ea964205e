"""Images from the network, against a real server on 127.0.0.1: within limits, or refused with one sentence."""

import base64
import contextlib
import gzip
import io
import socket
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
from PIL import Image
from test_bad_pictures import bomb

from softcam_hub.data import downloads
from softcam_hub.data.downloads import DownloadError, download
from softcam_hub.data.images import UnreadableImage
from softcam_hub.pipeline import read_input

LIMITS = (downloads.MAX_BYTES, downloads.MAX_SECONDS)

SECONDS, MOST = 0.4, 100_000
"""Limits of these tests."""


def png(size=(12, 10), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


GOOD = png()
LARGER = png((300, 300))
STOP = threading.Event()
"""Ends what drips."""


class Handler(BaseHTTPRequestHandler):
    """Behaves as the first part of the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        kind, _, rest = self.path[1:].partition("/")
        getattr(self, f"give_{kind}")(rest)

    def send(self, content=b"", status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length != "none":
            self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has seen enough
            self.wfile.write(content)

    def drip(self, byte=b"x"):
        while not STOP.wait(0.05):
            try:
                self.wfile.write(byte)
            except OSError:
                return

    def give_good(self, rest):
        self.server.accepted.append(self.headers["Accept-Encoding"])
        self.send(GOOD)

    def give_nolength(self, rest):
        self.send(GOOD, length="none")

    def give_chunked(self, rest):
        self.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD), length="none", Transfer_Encoding="chunked")

    def give_status(self, rest):
        self.send(b"x", status=int(rest))

    def give_escape(self, rest):
        self.wfile.write(b"HTTP/1.1 404 \x1b[31mred\r\nContent-Length: 0\r\n\r\n")

    def give_redirect(self, rest):
        """To /good, by so many redirects."""
        left = int(rest) - 1
        self.send(b"x", status=302, Location=f"/redirect/{left}" if left else "/good")

    def give_loop(self, rest):
        self.send(status=301, Location=self.path)

    def give_to(self, rest):
        self.send(status=307, Location=rest)

    def give_bomb_of_a_redirect(self, rest):
        content = gzip.compress(bytes(50_000_000))
        self.send(content, status=302, Location="/good", Content_Encoding="gzip")

    def give_truncated(self, rest):
        self.send(GOOD, length=len(GOOD) + 50)

    def give_cut(self, rest):
        self.send(LARGER[: len(LARGER) // 2])

    def give_half_chunk(self, rest):
        self.send(b"ff\r\nabc", length="none", Transfer_Encoding="chunked")

    def give_page(self, rest):
        self.send(b"<html>sign in</html>", Content_Type="image/png")

    def give_postscript(self, rest):
        self.send(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Content_Type="image/png")

    def give_empty(self, rest):
        self.send()

    def give_large(self, rest):
        self.send(bytes(MOST + 1))

    def give_just(self, rest):
        self.send(GOOD + bytes(MOST - len(GOOD)))

    def give_endless(self, rest):
        self.send(length="none")
        while not STOP.is_set():
            try:
                self.wfile.write(bytes(10_000))
            except OSError:
                return

    def give_announced(self, rest):
        """More than the limit, of which nothing comes."""
        self.send(length=10**15)
        self.drip()

    def give_gzip(self, rest):
        self.send(gzip.compress(GOOD), Content_Encoding="gzip")

    def give_deflate(self, rest):
        self.send(zlib.compress(GOOD), Content_Encoding="deflate")

    def give_gzip_bomb(self, rest):
        self.send(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip")

    def give_gzip_cut(self, rest):
        self.send(gzip.compress(GOOD)[:-12], Content_Encoding="gzip")

    def give_gzip_wrong(self, rest):
        self.send(GOOD, Content_Encoding="gzip")

    def give_brotli(self, rest):
        self.send(GOOD, Content_Encoding="br")

    def give_twice(self, rest):
        self.send(gzip.compress(gzip.compress(GOOD)), Content_Encoding="gzip, gzip")

    def give_pixels(self, rest):
        self.send(png((9000, 9000), "1"))

    def give_bomb(self, rest):
        self.send(bomb())

    def give_ribbon(self, rest):
        self.send(png((1, 20_000), "1"))

    def give_silence(self, rest):
        STOP.wait(20)

    def give_drip(self, rest):
        self.send(length=1000)
        self.drip()

    def give_drip_of_headers(self, rest):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.drip()

    def give_drip_of_a_redirect(self, rest):
        self.send(status=302, length=1000, Location="/drip")
        self.drip()

    def give_slow_redirects(self, rest):
        STOP.wait(0.1)
        self.send(status=302, Location=f"/slow_redirects/{int(rest) + 1}")

    def give_no_http(self, rest):
        self.wfile.write(b"220 ftp.example.org ready\r\n")

    def give_nothing(self, rest):
        pass

    def log_message(self, *args):
        """Keep the access log out of the test's output."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args):
        """Say nothing of clients that went away."""


@pytest.fixture(scope="module")
def server():
    server = Server(("127.0.0.1", 0), Handler)
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
def test_what_is_read(url, kind):
    assert download(f"{url}/{kind}").startswith(GOOD)
    assert read_input(f"{url}/{kind}", None).size == (12, 10)


def test_servers_are_asked_for_plain_content(url, server):
    read_input(f"{url}/good", None)
    assert set(server.accepted) == {"identity"}


def test_the_content_of_a_redirect_is_not_read(url):
    assert read_input(f"{url}/bomb_of_a_redirect", None).size == (12, 10)


REFUSED = {
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


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_while_it_is_downloaded(url, kind):
    with pytest.raises(DownloadError) as caught:
        read_input(f"{url}/{kind}", None)
    assert str(caught.value).startswith(f"{url}/{kind} cannot be downloaded: ")
    assert REFUSED[kind] in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith(".")


NO_IMAGES = {
    "page": "it is not an image of a supported format",
    "postscript": "it is not an image of a supported format",
    "empty": "it is not an image",
    "cut": "image file is truncated",
    "pixels": "it has 9000×9000 = 81 million pixels",
    "bomb": "it has more than 50 million pixels",
    "ribbon": "it has 1×20000 pixels, and the longer side may be at most 20 times the shorter",
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_comes_and_is_no_image(url, kind):
    with pytest.raises(UnreadableImage) as caught:
        read_input(f"{url}/{kind}", None)
    assert str(caught.value).startswith(f"{url}/{kind} cannot be read: {NO_IMAGES[kind]}")
    assert str(caught.value).isprintable()


SLOW = ["silence", "drip", "drip_of_headers", "announced", "slow_redirects/0"]


@pytest.mark.parametrize("kind", SLOW)
def test_slow_servers_are_left_when_the_time_is_over(url, kind, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_REDIRECTS", 1000)
    began = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        read_input(f"{url}/{kind}", SECONDS)
    assert SECONDS <= time.monotonic() - began < SECONDS + 1
    assert str(caught.value) == f"{url}/{kind} cannot be downloaded: it took longer than {SECONDS} s."


def test_a_redirect_that_drips_is_followed_at_once(url):
    with pytest.raises(DownloadError, match="took longer than 0.4 s"):
        read_input(f"{url}/drip_of_a_redirect", SECONDS)


def test_the_time_limit_holds_by_itself(url, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_SECONDS", SECONDS)
    with pytest.raises(DownloadError, match="took longer than 0.4 s"):
        read_input(f"{url}/drip", None)


@pytest.mark.parametrize("kind", SLOW)
def test_a_thread_that_nobody_waits_for_ends(url, kind):
    before = set(threading.enumerate())
    with pytest.raises(DownloadError):
        read_input(f"{url}/{kind}", 0.1)
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
def test_addresses_that_lead_nowhere(address):
    with pytest.raises(DownloadError) as caught:
        read_input(address.format(port=closed_port()), None)
    assert "cannot be downloaded: " in str(caught.value)
    assert str(caught.value).isprintable()


TEXTS = [
    "no-such.png",
    "s3://bucket/x.png",
    "file:///etc/hostname",
    "zip://x.png::http://127.0.0.1/x.zip",
    "abcd",
    "A" * 5000,
    "\x1b[31m",
    "a\0b",
    "caf\udce9.png",
    " ",
    "data:image/png;base64,AAAA",
    "data:,x",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_that_is_no_image_is_refused_with_a_short_sentence(text):
    with pytest.raises(UnreadableImage, match="cannot be read: ") as caught:
        read_input(text, None)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "value", [None, 3, {"path": "x.png"}, object(), datasets.Image()], ids=lambda value: type(value).__name__
)
def test_values_that_are_no_image_are_refused_by_their_type(value):
    with pytest.raises(TypeError, match=f"expected a PIL image, .*, got {type(value).__name__}"):
        read_input(value, None)


def test_base64_is_read_with_and_without_line_breaks():
    text = base64.encodebytes(GOOD).decode()
    for given in (text, "".join(text.split()), f"data:image/png;base64,{text}"):
        assert np.asarray(read_input(given, None)).shape == (10, 12, 3)
