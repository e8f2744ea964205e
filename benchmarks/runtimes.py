"""Compare exported files with torch: their outputs, their size, and the time that they take.

python -m benchmarks.runtimes                     # all networks and formats; ten minutes of one core
python -m benchmarks.runtimes resnet50            # rows of one network in place of its earlier rows

- A file is refused where `export` itself refuses it, on noise. It is then written all the same, and measured.
- Errors of logits and maps are relative to the largest output of torch in float32, and those of probabilities are
  differences. Images are generated. Norms of batches in random networks take the statistics of images, as features of
  random weights die out without.
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
from softcam_hub.precisions import ARCHIVE, FORMATS

from .hidden_layers import calibrate, pictures
from .imagenet_weights import imagenet_folder
from .timing import Row, environment, measure, prepare, print_rows, replace_rows, rounded

ROWS = Path(__file__).parent / "results" / "runtimes.jsonl"
IMAGENET = ("tf_efficientnet_lite0",)
"""Networks with ImageNet weights."""

SHIPPED = "cape_lesions"
"""The model that comes with the package, which was trained on generated lesions."""

NETWORKS = ("resnet50", "efficientnet_b0", "convnext_tiny", "swinv2_tiny_window8_256", "vit_small_patch16_224")
"""Networks with random weights."""

OUTPUTS, IMAGES, BATCH, PAIRS = ("logits", "maps"), 8, 4, 5
"""Names of the outputs, and numbers of images, of images of a timed batch and of pairs."""

Run = Callable[[Tensor], tuple[Tensor, ...]]


def load(network: str) -> softcam_hub.Classifier:
    """Return CAPE on a backbone."""
    torch.manual_seed(0)
    if network in IMAGENET:
        vanilla = timm.create_model(f"local-dir:{imagenet_folder(network)}", pretrained=True)
        return softcam_hub.convert(vanilla, "cape").eval()
    if network == SHIPPED:
        return timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).eval()
    model = timm.create_model(f"cape_{network}")
    seen = pictures(model, BATCH)  # and noise, on which `export` checks a file
    return calibrate(model, torch.cat([seen, torch.randn_like(seen)]))


def write(model: softcam_hub.Classifier, folder: Path, format: str, precision: str) -> tuple[Run, int, bool]:
    """Export a model; return the function that runs the file, the number of its bytes, and whether it was accepted."""
    file = folder / f"{precision}{ARCHIVE if format == 'torch' else '.onnx'}"
    export = softcam_hub.export_torch if format == "torch" else softcam_hub.export_onnx
    try:
        export(model, file, precision=precision)
        accepted = True
    except RuntimeError:
        export(model, file, tolerance=math.inf, precision=precision)
        accepted = False
    if format == "torch":
        return torch.export.load(file).module(), file.stat().st_size, accepted
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"pixel_values": images.numpy()}), file.stat().st_size, accepted


@torch.no_grad()
def rows_of(network: str) -> Iterator[Row]:
    """Yield a row for every format and precision of a network."""
    model = load(network)
    images = pictures(model, IMAGES)
    expected = dict(zip(OUTPUTS, in_torch(model, images), strict=True))
    few = images[:BATCH]
    for format in ("onnx", "torch"):  # a page for the browser is made around an ONNX file
        for precision in FORMATS[format]:
            with tempfile.TemporaryDirectory() as folder:
                run, size, accepted = write(model, Path(folder), format, precision)
                is_slow = (format, precision) == ("torch", "fp16")  # on a CPU
                count, pairs = (BATCH, 3) if is_slow else (IMAGES, PAIRS)
                outputs = dict(zip(OUTPUTS, map(torch.as_tensor, run(images[:count])), strict=True))
                logits = expected["logits"][:count]
                errors = {name: difference(outputs[name], expected[name][:count]) for name in OUTPUTS}
                same = outputs["logits"].argmax(dim=1) == logits.argmax(dim=1)
                off = outputs["logits"].softmax(dim=1) - logits.softmax(dim=1)
                yield {
                    "network": network,
                    "weights": "ImageNet" if network in IMAGENET else "lesions" if network == SHIPPED else "random",
                    "format": format,
                    "precision": precision,
                    "megabytes": rounded(size / 1e6),
                    **{f"{name}_error": rounded(error) for name, error in errors.items()},
                    "probability_error": rounded(float(off.abs().max())),
                    "same_predictions": int(same.sum()),
                    "images": count,
                    "batch": BATCH,
                    "classes": model.num_classes,
                    "accepted": accepted,
                    **measure(partial(run, few), partial(in_torch, model, few), pairs, warm_up=pairs // 3),
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
                f"{row['probability_error']:.0e}",
                f"{row['same_predictions']} of {row['images']}",
                f"{row['megabytes']:.{0 if row['megabytes'] >= 10 else 1}f}",
                f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]",
            ]
        )
    real = ", ".join(f"`{name}`" for name in IMAGENET)
    about = (
        f"CAPE with 1,000 classes and random weights, {real} with ImageNet weights, `{SHIPPED}` with those of its four "
        "classes; generated images. Errors of logits and maps are relative to the largest output "
        "of torch in float32, and those of probabilities are the largest difference. *Refused* is a file that `export` "
        "does not write unless `tolerance` says otherwise, as its error on noise is above the tolerance. Time is that "
        f"of torch in float32, quartiles in brackets, batch {rows[0]['batch']}, one thread, {rows[0]['machine']}, "
        f"torch {rows[0]['torch']}."
    )
    header = ["network", "format", "precision", "error of logits", "error of maps", "error of probabilities"]
    header += ["same class", "MB", "time / torch's"]
    return f"{about}\n\n{markdown(header, body)}"


def main() -> None:
    """Measure the networks, and write the rows."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[SHIPPED, *IMAGENET, *NETWORKS], help="networks; all by default")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    args = parser.parse_args()
    prepare(1)
    for network in args.networks:
        replace_rows(print_rows(rows_of(network)), args.output, ("network", "format", "precision"))


if __name__ == "__main__":
    main()
