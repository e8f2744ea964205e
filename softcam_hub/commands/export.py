"""`softcam-hub export`: write an ONNX file with logits and maps."""

import argparse
from pathlib import Path

from ..files import check_replaceable
from . import add_model_option, register_models

HELP = "Write a self-explaining model as an ONNX file with logits and maps."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_model_option(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="File to write, such as model.onnx.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing file.")


def run(arguments: argparse.Namespace) -> None:
    """Load the model, and write the file."""
    file = arguments.output
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent} to write {file.name} to")
    check_replaceable(file, arguments.overwrite)
    register_models()
    from ..export import export_onnx
    from ..loading import load_classifier
    from ..models.self_explaining import SelfExplaining

    model = load_classifier(arguments.model).model
    if not isinstance(model, SelfExplaining):
        raise ValueError(f"{arguments.model} is a vanilla classifier without maps: export a softcam_* or cape_* model")
    export_onnx(model, file, overwrite=arguments.overwrite)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, with the same outputs in onnxruntime as in torch")
