"""`softcam-hub export`: write an ONNX file or an archive of torch.export with logits and maps, or a web page."""

import argparse
from pathlib import Path

from ..files import check_replaceable
from ..precisions import FORMATS, TOLERANCES, check_choice
from . import add_model_option, register_models

HELP = "Write a self-explaining model as a file for onnxruntime or torch, or as a page that explains in the browser."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_model_option(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="File to write, such as model.onnx or model.pt2; with --format web a folder, such as page.",
    )
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        default="onnx",
        help="An ONNX file, an archive of torch.export, or a folder with a web page. [onnx]",
    )
    parser.add_argument(
        "--precision",
        choices=list(TOLERANCES),
        default="fp32",
        help="Precision of the backbone; torch has no int8, and web no fp16. [fp32]",
    )
    parser.add_argument(
        "--runtime",
        type=Path,
        metavar="DIR",
        help="Folder of the npm package onnxruntime-web, which goes along with a web page, so that it works without "
        "any other host. By default, the page loads it from its public address.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing file, or an earlier page.")


def run(arguments: argparse.Namespace) -> None:
    """Load the model, and write the file."""
    file, precision = arguments.output, arguments.precision
    if arguments.format != "web":
        if arguments.runtime:
            raise ValueError("--runtime belongs to --format web: leave it out, or export a page")
        if not file.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {file.parent} to write {file.name} to: create it, or check the path"
            )
        check_replaceable(file, arguments.overwrite)
    check_choice(file, arguments.format, precision)
    register_models()
    from ..export import export_onnx, export_torch
    from ..loading import load_classifier
    from ..models.self_explaining import SelfExplaining
    from ..web.page import export_web

    model = load_classifier(arguments.model).model
    if not isinstance(model, SelfExplaining):
        raise ValueError(f"{arguments.model} is a vanilla classifier without maps: export a softcam_* or cape_* model")
    try:
        if arguments.format == "web":
            export_web(model, file, arguments.runtime, arguments.overwrite, precision)
            print(f"{file}: a page for the browser. Look at it with: python -m http.server --directory {file}")
            return
        export = export_torch if arguments.format == "torch" else export_onnx
        export(model, file, overwrite=arguments.overwrite, precision=precision)
    except RuntimeError as error:  # the file computes other numbers than torch
        raise ValueError(str(error)) from error
    runtime, size = "torch.export" if arguments.format == "torch" else "onnxruntime", file.stat().st_size / 1e6
    if precision == "fp32":
        print(f"{file}: {size:.1f} MB, with the same outputs in {runtime} as in torch")
    else:
        within = f"within {TOLERANCES[precision]:.0e} of the largest output of torch"
        print(f"{file}: {size:.1f} MB in {precision}, {within}")
