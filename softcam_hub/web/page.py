"""Write a folder with a web page that explains pictures in the browser, without a server that computes.

- The page, its script, the model as an ONNX file, and a README by which the folder is a static Space on the Hub.
- Everything that the page knows about the model stands in it as JSON: the page prepares pictures, computes
  probabilities and draws maps as this package does.
"""

import html
import json
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..export import check_exportable, export_onnx
from ..files import DRAFT, copy_file, write_text
from ..hub.publishing import PAGE, PAGE_FILES
from ..models.flip_registration import measure_on_first_use
from ..models.overlays import DIVERGING, SEQUENTIAL, meaning_of
from ..models.self_explaining import SelfExplaining
from ..output_folder import OutputFolder, Use
from ..precisions import LARGE, Precision, check_choice

RUNTIME_VERSION = "1.30.0"
"""Version of onnxruntime-web that the page loads from its public address, and that the tests drive."""

RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Files of the npm package onnxruntime-web that the page needs, in its folder dist/. The page imports the first one."""

PUBLIC_RUNTIME = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/{RUNTIME_FILES[0]}"

RUNTIME_FOLDER = "runtime"
SCRIPT, MODEL, README = "explain.js", "model.onnx", "README.md"
SHOWN = 3
"""Number of classes whose maps the page shows."""

HERE = Path(__file__).parent

README_TEXT = Template(
    """---
title: $quoted
emoji: 🔬
colorFrom: blue
colorTo: yellow
sdk: static
app_file: index.html
pinned: false
tags:
- explainability
- class-activation-maps
- image-classification
---

# $title

Choose a picture: the page shows the prediction of the model, and the evidence that it is made of. The model runs in the
browser, and pictures never leave the device. To look at the page on your machine, run `python -m http.server` in this
folder. It was written by `softcam-hub export --format web`.
"""
)


def export_web(
    model: SelfExplaining,
    folder: str | Path,
    runtime: str | Path | None = None,
    overwrite: bool = False,
    precision: Precision = "fp32",
    title: str | None = None,
    tolerance: float | None = None,
) -> Path:
    """Write a folder with a page that explains pictures in the browser. Pictures never leave the device.

        softcam_hub.export_web(model, "page", runtime="node_modules/onnxruntime-web")

    Any web server shows it, such as `python -m http.server`, and `softcam-hub push page you/name --space` publishes it
    as a static Space.

    Args:
        model: timm or Hugging Face model of this package, with classes.
        folder: Folder to write. It is created, and files in it that are not ours are never replaced.
        runtime: Folder of the npm package onnxruntime-web, which goes along, so that the page needs no other host. The
            default is the public address of the package.
        overwrite: Replace an earlier page in the folder.
        precision: Precision of the model, `fp32`, or `int8` for weights in 8 bits.
        title: Heading of the page, on one line. The default is the name of the architecture.
        tolerance: Largest difference from torch's outputs, relative to the largest one. The default depends on the
            precision.

    Returns:
        Path of the folder.
    """
    folder = Path(folder)
    check_exportable(model, "export_web")
    check_choice(folder / MODEL, "web", precision)
    files = None if runtime is None else find_runtime(Path(runtime))
    settings = page_settings(model, f"./{RUNTIME_FOLDER}/{RUNTIME_FILES[0]}" if files else PUBLIC_RUNTIME)
    title = " ".join((title or "").split()) or f"{model.family}_{model.architecture}"
    output = OutputFolder(folder, "web page", list(PAGE_FILES))
    use: Use = "replace" if overwrite else "new"
    with output.locked(use), TemporaryDirectory(prefix=DRAFT) as draft:
        kept = [export_onnx(model, Path(draft) / MODEL, precision=precision, tolerance=tolerance)]
        for file in files or ():  # they may lie in the page that is replaced
            kept.append(Path(draft) / RUNTIME_FOLDER / file.name)
            kept[-1].parent.mkdir(exist_ok=True)
            copy_file(file, kept[-1])
        output.claim(use)
        for file in kept:
            target = folder / file.relative_to(draft)
            target.parent.mkdir(exist_ok=True)
            copy_file(file, target)
        copy_file(HERE / SCRIPT, folder / SCRIPT)
        write_text(folder / README, README_TEXT.substitute(title=title, quoted=json.dumps(title, ensure_ascii=False)))
        write_text(folder / PAGE, render_page(settings, title))  # last, so that an unfinished folder shows no page
    return folder


def render_page(settings: dict[str, Any], title: str) -> str:
    """Return the page with its settings, in which no class name can end the element that holds them."""
    content = json.dumps(settings, indent=1).replace("<", "\\u003c")
    page = Template((HERE / PAGE).read_text(encoding="utf-8"))
    return page.substitute(title=html.escape(title), settings=content)


def page_settings(model: SelfExplaining, runtime: str) -> dict[str, Any]:
    """Return what the page must know of a model.

    Args:
        model: Model with classes.
        runtime: Address of the runtime.
    """
    size = sum(weight.numel() * 4 for weight in model.parameters())
    if size > LARGE:
        raise ValueError(f"a page cannot hold a model of {size / 1e9:.1f} GB: export it to ONNX and serve it")
    channels, height, width = model.input_size
    if channels not in (1, 3):
        raise ValueError(f"a browser reads pictures of 1 or 3 channels, and this model takes {channels}")
    measure_on_first_use(model)
    preprocessing, kind = dict(model.preprocessing), model.head_class.map_kinds[0]
    grid = model.explain(torch.zeros(1, channels, height, width)).layout()
    return {
        "runtime": runtime,
        "labels": list(model.labels),
        "multi_label": model.multi_label,
        "channels": channels,
        "height": height,
        "width": width,
        **_geometry(preprocessing, height, width),
        "mean": _per_channel(preprocessing["mean"], channels),
        "std": _per_channel(preprocessing["std"], channels),
        "grid": {"rows": grid.axis(0), "columns": grid.axis(1)},
        "signed": kind.signed,
        "adds_up": kind.sums_to_probability,
        "averages": kind.averages_to_logit,
        "threshold": kind.threshold,
        "colours": DIVERGING if kind.signed else SEQUENTIAL,
        "meaning": meaning_of(kind.name),
        "shown": min(SHOWN, model.num_classes),
    }


def _geometry(preprocessing: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return how pictures are resized and cropped, or refuse what the page does not do."""
    mode, interpolation = preprocessing.get("crop_mode") or "center", preprocessing["interpolation"]
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ValueError(
            "a page prepares pictures by a square crop of the centre or by changing their aspect ratio, and this model "
            f"by crop_mode={mode!r} to {height} x {width} px: set crop_mode='squash' in its pretrained_cfg if that fits"
        )
    share = preprocessing.get("crop_pct") or 0.875
    if share > 1:
        raise ValueError(f"a page cannot pad pictures, and crop_pct={share} asks for that: set it to 1 at most")
    return {
        "crop_mode": mode,
        "crop_pct": share,
        "interpolation": "bilinear" if interpolation == "random" else interpolation,
    }


def _per_channel(values: Any, channels: int) -> list[float]:
    """Return one value for each channel, where there may be one for all."""
    return list(values) * channels if len(values) == 1 else list(values)[:channels]


def find_runtime(folder: Path) -> list[Path]:
    """Return the files of onnxruntime-web that the page needs, from the folder of the npm package.

    Args:
        folder: The package, or its folder `dist`.
    """
    for place in (folder, folder / "dist"):
        files = [place / name for name in RUNTIME_FILES]
        if all(file.is_file() for file in files):
            return files
    raise FileNotFoundError(
        f"{folder} is not the npm package onnxruntime-web: expected {', '.join(RUNTIME_FILES)} in it or in its folder "
        "dist; fetch it with npm install onnxruntime-web"
    )
