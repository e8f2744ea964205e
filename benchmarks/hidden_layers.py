"""Compare SoftCAM with the vanilla classifier where layers stand between pool and classifier.

python -m benchmarks.hidden_layers              # a minute of one core
python -m benchmarks.hidden_layers --trained    # a quarter of an hour: a network that learns lesions from scratch

- Images are generated, and weights are random: the numbers say what the arithmetic does, and nothing about a trained
  network. Every parameter is moved off its initial value, and norms of batches take the statistics of the images, as
  features of random weights die out without.
- *Cancellation* is the size of the evidence beside the logit, mean|M| / |logit|, over all images and classes. It is 1
  where all evidence of a map has one sign.
- Whether the maps of a trained network follow what the removal of parts changes is measured on generated lesions, whose
  parts can be left out.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import create_transform
from torch import Tensor, nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.lesions import draw
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.report import markdown
from softcam_hub.memory import keep_freed_memory
from softcam_hub.models.pooled_layers import attention_parts, attention_pool, everywhere
from softcam_hub.training import parse, run

from .timing import Row, environment, rounded, write_rows

ROWS = Path(__file__).parent / "results" / "hidden_layers.jsonl"
ARCHITECTURES = (
    *("convnext_atto", "mobilenetv3_large_100", "mobilenetv4_conv_small", "ghostnet_100", "hardcorenas_a"),
    *("repghostnet_100", "lcnetv2_base", "fasternet_t0", "hgnetv2_b0", "inception_next_atto", "mambaout_femto"),
    *("efficientvit_b0", "lowformer_b0", "cpubone_nano", "coatnet_0_224", "caformer_s18", "resnet50_mlp"),
    *("resnet50_clip", "convnext_large_mlp"),
)
"""Architectures: ConvNeXt with a norm for comparison, and one of every family whose heads have further layers."""

SMALLER: dict[str, dict[str, Any]] = {
    "convnext_large_mlp": {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128), "head_hidden_size": 32}
}
"""Architecture -> arguments that make it small, where timm has no small one."""

CLASSES, IMAGES = 10, 8

TRAINED, SIDE, LIMIT = "mobilenetv3_small_050", 224, 200
"""Architecture that is trained on lesions, side of its images, and number of test images of which parts are removed."""

ROWS_OF_TRAINED = ROWS.with_name("hidden_layers_trained.jsonl")
CAUSAL = ("causal_linear", "causal_rank")


def moved(model: nn.Module) -> nn.Module:
    """Move every parameter off its initial value, so that a forgotten bias or norm shows."""
    for parameter in model.parameters():
        size = 0.2 if parameter.ndim <= 1 else 0.3 * float(parameter.std(correction=0))
        parameter.add_(size * torch.randn_like(parameter))
    return model


def calibrate(model: nn.Module, images: Tensor) -> nn.Module:
    """Give the norms of batches the statistics of images, and return the model in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, of which there is one
    model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


@torch.no_grad()
def measure(architecture: str) -> Row:
    """Return a row of an architecture."""
    torch.manual_seed(0)
    vanilla = moved(timm.create_model(architecture, num_classes=CLASSES, **SMALLER.get(architecture, {})))
    images = pictures(softcam_hub.convert(vanilla, "softcam"))
    expected = calibrate(vanilla, images)(images)
    model = softcam_hub.convert(vanilla, "softcam").eval()
    logits, maps = model.head(model.forward_features(images), kind="softcam")
    cancellation = maps.abs().mean(dim=(2, 3)) / logits.abs()
    low, middle, high = np.quantile(cancellation.numpy(), (0.25, 0.5, 0.75))
    positions = position_share(model, images)
    return {
        "architecture": architecture,
        "hidden": len(model.anatomy.hidden),
        "error": rounded(float((logits - expected).abs().max() / expected.abs().max())),
        "cancellation": rounded(float(middle)),
        "cancellation_quartiles": [rounded(float(low)), rounded(float(high))],
        "spread_over_locations": rounded(float((maps.std(dim=(2, 3)) / maps.abs().mean(dim=(2, 3))).median())),
        **({} if positions is None else {"position_share": rounded(positions)}),
        "images": IMAGES,
        **environment(),
    }


def train(output: Path, options: dict[str, Any] | None = None) -> Row:
    """Train a network with hidden layers in its head on lesions, and compare its maps with the removal of parts.

    Args:
        output: Folder of the run and of its benchmark.
        options: Settings of the run in place of those of the recipe.
    """
    given: dict[str, Any] = {"model": f"softcam_{TRAINED}", "model_args": "", "image_size": SIDE, "data_size": SIDE}
    given |= {"output": output / "run", **(options or {})}
    config = parse(["--recipe=lesions-softcam", *(f"--{name}={value}" for name, value in given.items())])
    metrics = run(config)
    settings: dict[str, Any] = {"explainers": "softcam", "measures": "table causal", "data": "lesions"}
    settings["data_size"] = config.data.data_size
    (row,) = benchmark(output / "run" / "model", output / "benchmark", limit=LIMIT, batch_size=25, **settings)
    return {
        "architecture": TRAINED,
        "accuracy": rounded(metrics["test_accuracy"]),
        "cancelled_share": rounded(metrics["test_cancelled_share"]),
        "images": row["images"],
        **{name: rounded(row[name]) for name in CAUSAL},
        **{f"{name}_interval": [rounded(end) for end in row[f"{name}_interval"]] for name in CAUSAL},
        **environment(),
    }


def trained_table(rows: list[Row]) -> str:
    """Render a line for every trained network."""
    body = []
    for row in rows:
        low, high = row["causal_linear_interval"]
        share = f"{100 * row['cancelled_share']:.0f} %"
        causal = f"{row['causal_linear']:.2f} [{low:.2f}, {high:.2f}]"
        body.append([f"`softcam_{row['architecture']}`", f"{100 * row['accuracy']:.1f}", share, causal])
    header = ["trained on generated lesions", "accuracy in %", "evidence that cancels", "`causal_linear`"]
    return markdown(header, body)


def pictures(model: softcam_hub.Classifier, count: int = IMAGES) -> Tensor:
    """Return generated images with lesions, as a model takes them."""
    transform = create_transform(**model.preprocessing, is_training=False)
    return torch.stack([transform(draw(index, "test", 256).image) for index in range(count)])


def position_share(model: softcam_hub.Classifier, images: Tensor) -> float | None:
    """Return the share of the size of the evidence that depends on positions alone, for CLIP's pool."""
    pools = [model.backbone.get_submodule(path) for path in model.anatomy.hidden]
    if [everywhere(pool) for pool in pools] != [attention_pool]:
        return None
    parts = attention_parts(pools[0], model.backbone(images))
    features, positions = (torch.einsum("ck,bkhw->bchw", model.head.weight, part).abs().mean() for part in parts)
    return float(positions / (features + positions))


def hidden_layers_table(rows: list[Row]) -> str:
    """Render a line for every architecture."""
    body = [
        [
            f"`{row['architecture']}`",
            str(row["hidden"]),
            f"{row['error']:.1e}",
            f"{row['cancellation']:.3g} ({' to '.join(f'{end:.3g}' for end in row['cancellation_quartiles'])})",
            f"{row['spread_over_locations']:.2g}",
            f"{100 * row['position_share']:.0f} %" if "position_share" in row else "-",
        ]
        for row in rows
    ]
    header = ["architecture", "hidden layers", "relative error", "cancellation", "spread", "evidence of positions"]
    about = (
        f"Random weights, {rows[0]['images']} generated images, {CLASSES} classes: what the arithmetic does, and "
        "nothing about a trained network. The error is that of the logits against timm's model. *Cancellation* is the "
        "size of the evidence beside the logit, mean|M| / |logit|: median and quartiles over images and classes. "
        "*Spread* is the standard deviation of a map over its locations beside its mean size, in the median."
    )
    return f"{about}\n\n{markdown(header, body)}"


def main() -> None:
    """Measure all architectures, and write the rows."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES), help="architectures; all by default")
    parser.add_argument("--trained", action="store_true", help="train a network, and measure its maps")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    args = parser.parse_args()
    if args.trained:
        keep_freed_memory()
        torch.set_num_threads(1)
        write_rows([train(Path("runs") / "hidden layers")], ROWS_OF_TRAINED)
        return
    write_rows([measure(architecture) for architecture in args.architectures], args.output)


if __name__ == "__main__":
    main()
