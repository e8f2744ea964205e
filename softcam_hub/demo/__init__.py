"""The demo page: pictures explained in a browser, with gradio (extra `[demo]`)."""

from .page import HINT, open_page

__all__ = ["HINT", "open_page"]
