"""The demo page, which explains pictures in a browser. It needs gradio (extra `[demo]`)."""

from .page import HINT, open_page

__all__ = ["HINT", "open_page"]
