"""Export a model to ONNX or to an archive of torch.export, with the outputs logits and maps, and check the file.

- Images, logits and maps are float32 in every precision. In fp16 the backbone has half precision and the head float32,
  in int8 the weights of the backbone have 8 bits (see `precisions`).
- A file appears only after it has given the outputs of torch in float32, within the tolerance of its precision.
"""

import copy
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import ABANDONED, DRAFT, FULL, check_replaceable, flush, remove_drafts, unwritable
from .models.evaluation_mode import evaluation_mode
from .models.flip_registration import measure_on_first_use, pads_same, same_layers
from .models.heads import at_least_float32
from .models.self_explaining import SelfExplaining
from .precisions import TOLERANCES, Precision, check_choice, write_int8

HINT = "ONNX export needs extra packages: pip install 'softcam-hub[onnx]'"

logger = logging.getLogger(__name__)

OUTPUTS = ("logits", "maps")

SMALLEST = 0.01
"""Size of an output below which a difference is not relative to it: logits may all be zero."""

METADATA = "metadata.json"
"""Name of the extra file of an archive that holds what the metadata of an ONNX file hold."""


class _LogitsAndMaps(nn.Module):
    """Return logits and maps from the forward pass of a model, in float32 also where the backbone has less."""

    def __init__(self, model: SelfExplaining) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        kind = self.model.head_class.kinds[0]
        return self.model.head(at_least_float32(self.model.forward_features(pixel_values)), kind=kind)


def export_onnx(
    model: SelfExplaining,
    path: str | Path,
    tolerance: float | None = None,
    overwrite: bool = False,
    precision: Precision = "fp32",
) -> Path:
    """Write a model to an ONNX file with the input `pixel_values` and the outputs `logits` and `maps`.

    The batch is dynamic, and so are height and width where the architecture accepts any size. Networks that pad as
    TensorFlow does, such as those whose names begin with `tf_`, have the size of the model. The file appears only
    after onnxruntime has computed the same outputs on another batch size. Weights of more than 1.5 GB lie in a second
    file beside it, whose name is new for every export, so that an earlier export stays whole until it is replaced.

    The metadata of the file are texts, and JSON where a value is no text: which maps these are (`map_kind`),
    `precision`, `labels`, `multi_label`, `preprocessing` and, where it is known, where the cells of the maps lie.
    `alignment` says it in pixels: row i at start[0] + step[0]·i from the top, column j at start[1] + step[1]·j from the
    left. `map_offset` says it in cells, as `model.map_offset()` does.

    Args:
        model: timm or Hugging Face model of this package, with classes.
        path: File to write.
        tolerance: Largest difference between torch in float32 and onnxruntime, relative to the largest output. The
            default is 1e-4 for fp32, 3e-2 for fp16 and 1e-1 for int8.
        overwrite: Replace a file that exists.
        precision: Precision of the backbone: `fp32`, `fp16`, or `int8` for weights in 8 bits.

    Returns:
        Path of the file.
    """
    path = Path(path)
    check_choice(path, "onnx", precision)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{HINT} ({error.name} is missing)") from error
    check_exportable(model, "export_onnx")
    with _replacing(path, overwrite) as draft, _copies(model, precision) as (exported, reference):
        run = _write_onnx(exported, draft, precision, _metadata(reference.model, precision))
        _check_outputs(run, reference, precision, tolerance, _has_fixed_size(model, False))
    return path


def export_torch(
    model: SelfExplaining,
    path: str | Path,
    tolerance: float | None = None,
    overwrite: bool = False,
    precision: Precision = "fp32",
) -> Path:
    """Write a model to an archive of `torch.export`, which torch loads without this package and without timm.

        softcam_hub.export_torch(model, "lesions.pt2")
        logits, maps = torch.export.load("lesions.pt2").module()(images)

    Batch and size are dynamic as in `export_onnx`, but for dilated networks with average pooling, such as `resnet50d`
    with an `output_stride`: their archives have the size of the model. The extra file `metadata.json` of the archive
    holds what the metadata of an ONNX file hold.

    Args:
        model: timm or Hugging Face model of this package, with classes.
        path: File to write, with the suffix `.pt2`.
        tolerance: Largest difference from torch in float32, relative to the largest output. The default is 1e-4 for
            fp32 and 3e-2 for fp16.
        overwrite: Replace a file that exists.
        precision: Precision of the backbone, `fp32` or `fp16`.

    Returns:
        Path of the file.
    """
    path = Path(path)
    check_choice(path, "torch", precision)
    check_exportable(model, "export_torch")
    with _replacing(path, overwrite) as draft, _copies(model, precision) as (exported, reference):
        fixed_size = _has_fixed_size(exported.model, True)
        try:
            program = _export(exported, fixed_size)
        except NotImplementedError:  # torch cannot solve the conditions on the size that some networks make
            logger.warning(
                "%s: torch.export cannot keep its size open, so that the archive takes images of the model's own size; "
                "an ONNX file takes any",
                model.timm_name,
            )
            fixed_size = True
            program = _export(exported, fixed_size)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names folders of this machine
        content = json.dumps(_metadata(reference.model, precision), indent=2)
        torch.export.save(program, draft, extra_files={METADATA: content})
        run = torch.export.load(draft).module()
        _check_outputs(run, reference, precision, tolerance, fixed_size)
    return path


def _export(exported: "_LogitsAndMaps", fixed_size: bool) -> torch.export.ExportedProgram:
    return torch.export.export(exported, (_example(exported.model),), dynamic_shapes=_shapes(fixed_size))


def check_exportable(model: Any, function: str) -> None:
    """Raise an error unless a model shows evidence for classes.

    Args:
        model: Model to export.
        function: Name of the function that was called.
    """
    if not isinstance(model, SelfExplaining):
        raise TypeError(
            f"{function}() takes a self-explaining model, got {type(model).__name__}: make one of a timm classifier "
            "with softcam_hub.convert(model)"
        )
    if not model.num_classes:
        raise ValueError(f"{function}() needs classes: this model has num_classes=0; call reset_classifier(n) first")


@contextmanager
def _replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """Provide the path of a draft in a folder of its own, and move all files of the folder beside `path` afterwards."""
    check_replaceable(path, overwrite)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path.parent} to write {path.name} to: create it, or check the path"
        )
    remove_drafts(path.parent, older_than=ABANDONED)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=DRAFT) as folder:
        draft = Path(folder) / f"{path.stem}-{secrets.token_hex(6)}{path.suffix}"  # its weights are named after it
        try:
            yield draft
            flush(draft.parent)
            check_replaceable(path, overwrite)  # again, as an export can last minutes
            for weights in draft.parent.iterdir():
                if weights != draft:
                    os.replace(weights, path.with_name(weights.name))
            os.replace(draft, path)
        except OSError as error:
            raise (unwritable(path, error) if error.errno in FULL else error) from error


@contextmanager
def _copies(model: SelfExplaining, precision: str) -> Iterator[tuple[_LogitsAndMaps, _LogitsAndMaps]]:
    """Provide the model to export and the one to compare it with, in eval mode.

    Args:
        model: Model in any precision and on any device.
        precision: Precision of the export.

    Returns:
        The model in the precision of the export, and the model in float32; one and the same unless that is fp16.
    """
    measure_on_first_use(model)
    reference = _LogitsAndMaps(_on_cpu(model, torch.float32))
    exported = _LogitsAndMaps(_on_cpu(model, torch.float16)) if precision == "fp16" else reference
    with evaluation_mode(reference), evaluation_mode(exported):
        yield exported, reference


def _on_cpu(model: SelfExplaining, dtype: torch.dtype) -> SelfExplaining:
    """Return a model whose backbone has a dtype and whose head has float32, or the model itself if it has these."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    if all(weight.dtype == dtype == torch.float32 and weight.device.type == "cpu" for weight in weights):
        return model
    copied = copy.deepcopy(model).to("cpu", torch.float32)
    copied.backbone.to(dtype)
    return copied


def _example(model: SelfExplaining) -> Tensor:
    """Return images of the size of the model, two because one is taken for a batch that is never larger."""
    return torch.zeros(2, *model.input_size)


def _has_fixed_size(model: SelfExplaining, archive: bool) -> bool:
    """Tell whether the export takes images of one size.

    Formulas of padding by size grow without end. An archive cannot hold the rounding in them, even without effect.
    """
    computed = bool(same_layers(model)) if archive else pads_same(model)
    return bool(model.pretrained_cfg.get("fixed_input_size", False)) or computed


def _shapes(fixed_size: bool) -> dict[str, Any]:
    """Return which dimensions of the images are dynamic, as `torch.export` takes it."""
    sides = {} if fixed_size else {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    return {"pixel_values": {0: torch.export.Dim("batch", min=1, max=4096), **sides}}


def _write_onnx(
    exported: _LogitsAndMaps, file: Path, precision: str, metadata: dict[str, Any]
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Write an ONNX file, and return the function that computes its outputs in onnxruntime."""
    import onnxruntime

    program = torch.onnx.export(
        exported,
        kwargs={"pixel_values": _example(exported.model)},
        dynamo=True,
        output_names=list(OUTPUTS),
        dynamic_shapes=_shapes(_has_fixed_size(exported.model, False)),
        opset_version=18,
        verbose=False,
    )
    assert program is not None  # it is None without dynamo
    for node in program.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # it names folders of this machine
    for name, value in metadata.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    if precision == "int8":
        write_int8(program.model_proto, file)
    else:
        program.save(file, external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every operation that a CPU has in float32 only
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"pixel_values": images.numpy()})))


def _metadata(model: SelfExplaining, precision: str) -> dict[str, Any]:
    """Return what programs without this package need to prepare images and to draw maps."""
    metadata = {
        "map_kind": model.head_class.kinds[0],
        "precision": precision,
        "labels": list(model.labels),
        "multi_label": model.multi_label,
        "preprocessing": model.preprocessing,
    }
    if model.alignment is not None and model.alignment.is_known:
        metadata["alignment"] = model.alignment.as_dict()
    if (offset := model.map_offset()) is not None:
        metadata["map_offset"] = offset
    return metadata


@torch.no_grad()
def _check_outputs(
    run: Callable[[Tensor], tuple[Tensor, ...]],
    reference: _LogitsAndMaps,
    precision: str,
    tolerance: float | None,
    fixed_size: bool,
) -> None:
    """Raise RuntimeError where an exported file computes other logits or maps than torch, on a batch of another size.

    Args:
        run: Function that computes the outputs of the file.
        reference: Model in float32.
        precision: Precision of the file.
        tolerance: Largest difference, relative to the largest output. The default depends on the precision.
        fixed_size: Whether the file takes images of the size of the model only.
    """
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    channels, height, width = reference.model.input_size
    sides = (height, width) if fixed_size else (height + 32, width + 64)
    images = torch.randn(3, channels, *sides, generator=torch.Generator().manual_seed(0))
    for name, expected, output in zip(OUTPUTS, reference(images), run(images), strict=True):
        error = float((expected - output).abs().max() / expected.abs().max().clamp_min(SMALLEST))
        if not error <= tolerance:
            other = "" if precision == "fp32" else "export in fp32, which differs least, or "
            raise RuntimeError(
                f"the exported {name} differ from torch's by {error:.1e} of the largest value, more than "
                f"{tolerance:.0e}, and no file was written: {other}allow more in Python with tolerance"
            )
