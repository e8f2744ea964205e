"""Training modes of CAPE. They have a module without torch, so that a mistyped setting is answered at once."""

from typing import Literal

Mode = Literal["direct", "from-scratch", "post-fit"]
"""Ways in which CAPE learns, see `Bootstrap`."""

MODES: dict[Mode, tuple[float, float]] = {"direct": (1.0, 0.0), "from-scratch": (1.0, 1.0), "post-fit": (0.0, 1.0)}
"""Mode -> alpha and beta of eq. 10, as in the paper."""
