"""Compare SoftCAM with the vanilla classifier where layers stand between pool and classifier.

python -m benchmarks.hidden_layers    # a minute of one core

- Images are generated, and weights are random: the numbers say what the arithmetic does, and nothing about a trained
  network. For the error every parameter and statistic is moved off its initial value; the shares are those of timm's
  own random weights.
"""

import argparse
from pathlib import Path

import timm
import torch
from timm.data import create_transform
from torch import Tensor, nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.lesions import draw
from softcam_hub.evaluation.report import markdown
from softcam_hub.explanation_scores.faithfulness import cancelled_share
from softcam_hub.models.pooled_layers import attention_parts, attention_pool, everywhere

from .timing import Row, environment, rounded, write_rows

ROWS = Path(__file__).parent / "results" / "hidden_layers.jsonl"
ARCHITECTURES = (
    *("convnext_atto", "mobilenetv3_large_100", "mobilenetv4_conv_small", "ghostnet_100", "hardcorenas_a"),
    *("repghostnet_100", "lcnetv2_base", "fasternet_t0", "hgnetv2_b0", "inception_next_atto", "mambaout_femto"),
    *("efficientvit_b0", "lowformer_b0", "cpubone_nano", "coatnet_0_224", "caformer_s18", "resnet50_mlp"),
    "resnet50_clip",
)
"""Architectures: ConvNeXt with a norm for comparison, and one of every family whose heads have further layers."""

CLASSES, IMAGES = 10, 8


def moved(model: nn.Module) -> nn.Module:
    """Move every parameter and statistic off its initial value, so that a forgotten bias or norm shows."""
    for parameter in model.parameters():
        size = 0.2 if parameter.ndim <= 1 else 0.3 * float(parameter.std(correction=0))
        parameter.add_(size * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(0.75 + 0.5 * torch.rand_like(buffer))
    return model


@torch.no_grad()
def measure(architecture: str) -> Row:
    """Return a row of an architecture."""
    torch.manual_seed(0)
    vanilla = timm.create_model(architecture, num_classes=CLASSES).eval()
    model = softcam_hub.convert(vanilla, "softcam").eval()
    images = pictures(model)
    maps = model.head(model.forward_features(images), kind="softcam")[1]
    positions = position_share(model, images)
    expected = moved(vanilla)(images)
    logits = softcam_hub.convert(vanilla, "softcam").eval()(images)
    return {
        "architecture": architecture,
        "hidden": len(model.anatomy.hidden),
        "error": rounded(float((logits - expected).abs().max() / expected.abs().max())),
        "cancelled_share": rounded(float(cancelled_share(maps.flatten(0, 1)).mean())),
        **({} if positions is None else {"position_share": rounded(positions)}),
        "images": IMAGES,
        **environment(),
    }


def pictures(model: softcam_hub.Classifier) -> Tensor:
    """Return generated images with lesions, as a model takes them."""
    transform = create_transform(**model.preprocessing, is_training=False)
    return torch.stack([transform(draw(index, "test", 256).image) for index in range(IMAGES)])


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
            f"{100 * row['cancelled_share']:.0f} %",
            f"{100 * row['position_share']:.0f} %" if "position_share" in row else "-",
        ]
        for row in rows
    ]
    header = ["architecture", "hidden layers", "relative error", "evidence that cancels", "evidence of positions"]
    about = (
        f"Random weights, {rows[0]['images']} generated images, mean over {CLASSES} classes: what the arithmetic does, "
        "and nothing about a trained network. The error is that of the logits against timm's model."
    )
    return f"{about}\n\n{markdown(header, body)}"


def main() -> None:
    """Measure all architectures, and write the rows."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES), help="architectures; all by default")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    args = parser.parse_args()
    write_rows([measure(architecture) for architecture in args.architectures], args.output)


if __name__ == "__main__":
    main()
