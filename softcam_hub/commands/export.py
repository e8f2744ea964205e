"""`softcam-hub export`: write an ONNX file, or an archive of torch.export, with logits and maps."""

import argparse
from pathlib import Path

from ..files import check_replaceable
from ..precisions import FORMATS, TOLERANCES, check_choice
from . import add_model_option, register_models

HELP = "Write a self-explaining model as a file with logits and maps, for onnxruntime or torch."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_model_option(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="File to write, such as model.onnx or model.pt2."
    )
    parser.add_argument(
        "--format", choices=list(FORMATS), default="onnx", help="An ONNX file, or an archive of torch.export. [onnx]"
    )
    parser.add_argument(
        "--precision",
        choices=list(TOLERANCES),
        default="fp32",
        help="Precision of the backbone; int8 is for ONNX only. [fp32]",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing file.")


def run(arguments: argparse.Namespace) -> None:
    """Load the model, and write the file."""
    file, precision = arguments.output, arguments.precision
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent} to write {file.name} to")
    check_replaceable(file, arguments.overwrite)
    check_choice(file, arguments.format, precision)
    register_models()
    from ..export import export_onnx, export_torch
    from ..loading import load_classifier
    from ..models.self_explaining import SelfExplaining

    model = load_classifier(arguments.model).model
    if not isinstance(model, SelfExplaining):
        raise ValueError(f"{arguments.model} is a vanilla classifier without maps: export a softcam_* or cape_* model")
    export = export_torch if arguments.format == "torch" else export_onnx
    export(model, file, overwrite=arguments.overwrite, precision=precision)
    runtime, size = "torch.export" if arguments.format == "torch" else "onnxruntime", file.stat().st_size / 1e6
    if precision == "fp32":
        print(f"{file}: {size:.1f} MB, with the same outputs in {runtime} as in torch")
    else:
        within = f"within {TOLERANCES[precision]:.0e} of the largest output of torch"
        print(f"{file}: {size:.1f} MB in {precision}, {within}")
