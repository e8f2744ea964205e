"""The commands of `softcam-hub`, one module each: `HELP`, `add_arguments(parser)`, `run(arguments)`."""

from typing import Any

from .. import CAPE_LESIONS, register


def add_model_option(parser: Any) -> None:
    """Add the option `--model` to a parser or to a group of options."""
    parser.add_argument(
        "--model", default=CAPE_LESIONS, help="Model folder, timm name or Hub id. [a small lesions model]"
    )


def register_models() -> None:
    """Make our models known to timm and transformers, as importing the package does in any other program.

    This imports timm, which takes seconds, so that a command checks its options before.
    """
    register()
