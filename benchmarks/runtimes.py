"""Compare exported files with torch: their outputs, their size, and the time that they take.

python -m benchmarks.runtimes                     # all networks and formats; ten minutes of one core
python -m benchmarks.runtimes resnet50            # rows of one network in place of its earlier rows

- A file is written whatever its error is, and the row says whether the tolerance of its precision would accept it.
- Errors are relative to the largest output of torch in float32. Images are generated.
- Seconds are those of a batch with one thread, in turn with torch in float32.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import onnxruntime
import timm
import torch
from torch import Tensor

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import markdown
from softcam_hub.precisions import ARCHIVE, FORMATS, TOLERANCES

from .hidden_layers import pictures
from .imagenet_weights import imagenet_folder
from .timing import Row, environment, measure, prepare, print_rows, replace_rows, rounded

ROWS = Path(__file__).parent / "results" / "runtimes.jsonl"
IMAGENET = ("tf_efficientnet_lite0",)
"""Networks with ImageNet weights."""

NETWORKS = ("resnet50", "efficientnet_b0", "convnext_tiny", "swinv2_tiny_window8_256", "vit_small_patch16_224")
"""Networks with random weights."""

OUTPUTS, BATCH, PAIRS = ("logits", "maps"), 4, 7

Run = Callable[[Tensor], tuple[Tensor, ...]]


def load(network: str) -> softcam_hub.Classifier:
    """Return CAPE on a backbone."""
    torch.manual_seed(0)
    if network in IMAGENET:
        vanilla = timm.create_model(f"local-dir:{imagenet_folder(network)}", pretrained=True)
        return softcam_hub.convert(vanilla, "cape").eval()
    return timm.create_model(f"cape_{network}").eval()


def write(model: softcam_hub.Classifier, folder: Path, format: str, precision: str) -> tuple[Run, int]:
    """Export a model; return the function that runs the file, and the number of its bytes."""
    file = folder / f"{precision}{ARCHIVE if format == 'torch' else '.onnx'}"
    if format == "torch":
        softcam_hub.export_torch(model, file, tolerance=math.inf, precision=precision)
        return torch.export.load(file).module(), file.stat().st_size
    softcam_hub.export_onnx(model, file, tolerance=math.inf, precision=precision)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"pixel_values": images.numpy()}), file.stat().st_size


@torch.no_grad()
def rows_of(network: str) -> Iterator[Row]:
    """Yield a row for every format and precision of a network."""
    model = load(network)
    images = pictures(model)[:BATCH]
    expected = dict(zip(OUTPUTS, in_torch(model, images), strict=True))
    for format in ("onnx", "torch"):  # a page for the browser is made around an ONNX file
        for precision in FORMATS[format]:
            with tempfile.TemporaryDirectory() as folder:
                run, size = write(model, Path(folder), format, precision)
                outputs = dict(zip(OUTPUTS, map(torch.as_tensor, run(images)), strict=True))
                errors = {name: difference(outputs[name], expected[name]) for name in OUTPUTS}
                same = outputs["logits"].argmax(dim=1) == expected["logits"].argmax(dim=1)
                yield {
                    "network": network,
                    "weights": "ImageNet" if network in IMAGENET else "random",
                    "format": format,
                    "precision": precision,
                    "megabytes": rounded(size / 1e6),
                    **{f"{name}_error": rounded(error) for name, error in errors.items()},
                    "same_predictions": int(same.sum()),
                    "images": BATCH,
                    "accepted": max(errors.values()) <= TOLERANCES[precision],
                    **measure(partial(run, images), partial(in_torch, model, images), PAIRS),
                    **environment(),
                }


def in_torch(model: softcam_hub.Classifier, images: Tensor) -> tuple[Tensor, ...]:
    """Compute logits and maps of all classes in torch."""
    return model.head(model.forward_features(images), kind=model.head_class.kinds[0])


def difference(output: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float((output - expected).abs().max() / expected.abs().max())


def runtimes_table(rows: list[Row]) -> str:
    """Render a line for every network, format and precision."""
    body = []
    for row in rows:
        low, high = row["ratio_quartiles"]
        body.append(
            [
                f"`{row['network']}`",
                "ONNX" if row["format"] == "onnx" else "torch.export",
                f"`{row['precision']}`" + ("" if row["accepted"] else ", refused"),
                f"{row['logits_error']:.0e}",
                f"{row['maps_error']:.0e}",
                f"{row['megabytes']:.0f}",
                f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]",
            ]
        )
    real = ", ".join(f"`{name}`" for name in IMAGENET)
    about = (
        f"CAPE with 1,000 classes and random weights, {real} with ImageNet weights; {rows[0]['images']} generated "
        "images. "
        "Errors are relative to the largest output of torch in float32. *Refused* is a file whose error is above the "
        "tolerance, so that no file is written unless `tolerance` says otherwise. Time is that of torch in float32, "
        f"quartiles in brackets, batch {rows[0]['images']}, one thread, {rows[0]['machine']}, torch {rows[0]['torch']}."
    )
    header = ["network", "format", "precision", "error of logits", "error of maps", "MB", "time / torch's"]
    return f"{about}\n\n{markdown(header, body)}"


def main() -> None:
    """Measure the networks, and write the rows."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*IMAGENET, *NETWORKS], help="networks; all by default")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    args = parser.parse_args()
    prepare(1)
    for network in args.networks:
        replace_rows(print_rows(rows_of(network)), args.output, ("network", "format", "precision"))


if __name__ == "__main__":
    main()
