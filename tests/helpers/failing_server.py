"""A server on 127.0.0.1 that answers well, badly or slowly, as the path of a URL says."""

import contextlib
import gzip
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from helpers.data import POSTSCRIPT, decompression_bomb, encode

MOST = 100_000
"""Bytes that a download may have in the tests."""


def png(size=(12, 10), mode="RGB"):
    return encode(Image.new(mode, size), format="PNG")


GOOD = png()


LARGER = png((300, 300))


STOP = threading.Event()
"""Set at the end of the tests, so that slow answers end."""


class FailingHandler(BaseHTTPRequestHandler):
    """Answer as the first part of the path says: /good, /status/404, /drip, ..."""

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
        """Redirect to /good, by as many redirects as the path says."""
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
        self.send(POSTSCRIPT, Content_Type="image/png")

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
        """Announce more content than the limit allows, and send it drop by drop."""
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
        self.send(decompression_bomb())

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
        """Keep the access log out of the output of the tests."""


class FailingServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args):
        """Ignore clients that close their connection."""
