"""Draw the pictures of the documentation that show the page which explains pictures in the browser.

python -m tools.draw_web_page    # docs/web_page.png and docs/web_page_phone.png

- The page has the shipped model, and explains one generated test image in a Chromium without a window.
- The letters are those of this machine's fonts, so that another machine draws other lines.
"""

import functools
import http.server
import io
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from softcam_hub import CAPE_LESIONS, export_web
from softcam_hub.data.lesions import draw
from softcam_hub.loading import load_classifier
from tools.fetch_runtime import fetch_runtime

INDEX, SIDE = 35, 128
"""Number of the test image, and its side in pixels, which is that of the model's images."""

DESKTOP: ViewportSize = {"width": 1024, "height": 768}
PHONE: ViewportSize = {"width": 390, "height": 844}
WAIT = 60_000
"""Longest time in milliseconds that a page may take to load its model, or to explain a picture."""

DOCS = Path(__file__).parents[1] / "docs"
PICTURE, PHONE_PICTURE = DOCS / "web_page.png", DOCS / "web_page_phone.png"


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """Provide an installed Chromium without a window."""
    path = find_chromium()
    if path is None:
        raise FileNotFoundError("there is no Chromium: run make chromium")
    unprivileged = [] if os.geteuid() else ["--no-sandbox"]  # root has no sandbox
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=unprivileged)
        yield browser
        browser.close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Answer requests without a line in the terminal for each."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback device, and provide its address.

    Args:
        folder: Folder that holds `index.html`.
    """
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def explain_on_page(browser: Browser, address: str, file: Path, viewport: ViewportSize) -> Page:
    """Open the page, let it explain a picture, and return it when the maps are drawn.

    Args:
        browser: Browser that opens the page.
        address: Address of the served folder.
        file: Picture to explain.
        viewport: Width and height of the window in pixels.
    """
    page = browser.new_page(viewport=viewport)
    page.goto(f"{address}/index.html")
    page.set_input_files("#file", str(file))
    expect(page.locator("#status")).to_contain_text("The most probable class is", timeout=WAIT)
    return page


def draw_web_page(browser: Browser, folder: Path) -> tuple[Image.Image, Image.Image]:
    """Return pictures of the whole page on a desktop, and on a phone down to the end of the first map.

    Args:
        browser: Browser that opens the page.
        folder: Exported page of the shipped model.
    """
    with TemporaryDirectory() as temporary, serve_folder(folder) as address:
        file = Path(temporary) / f"lesion-{INDEX}.png"
        draw(INDEX, "test", SIDE).image.save(file)
        desktop = explain_on_page(browser, address, file, DESKTOP)
        whole = _open(desktop.screenshot(full_page=True))
        desktop.close()
        phone = explain_on_page(browser, address, file, PHONE)
        second = phone.locator("#tiles figure").nth(1).bounding_box()
        assert second is not None
        upper = _open(phone.screenshot(full_page=True)).crop((0, 0, PHONE["width"], round(second["y"])))
        phone.close()
    return whole, upper


def _open(screenshot: bytes) -> Image.Image:
    """Open a screenshot without its transparency, which no page has."""
    return Image.open(io.BytesIO(screenshot)).convert("RGB")


def main() -> None:
    """Export the page of the shipped model into a temporary folder, and draw both pictures."""
    with TemporaryDirectory() as temporary, launch_chromium() as browser:
        folder = export_web(load_classifier(CAPE_LESIONS).model, Path(temporary) / "page", fetch_runtime())
        pictures = draw_web_page(browser, folder)
    for picture, path in zip(pictures, (PICTURE, PHONE_PICTURE), strict=True):
        picture.save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height} pixels, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
