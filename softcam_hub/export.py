"""Export a model to ONNX with the outputs logits and maps, and check the file in onnxruntime."""

import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import ABANDONED, DRAFT, FULL, check_replaceable, flush, remove_drafts, unwritable
from .models.evaluation_mode import evaluation_mode
from .models.flip_registration import measure_on_first_use
from .models.self_explaining import SelfExplaining

HINT = "ONNX export needs extra packages: pip install 'softcam-hub[onnx]'"


class _LogitsAndMaps(nn.Module):
    """Return logits and maps from the forward pass of a model."""

    def __init__(self, model: SelfExplaining) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        kind = self.model.head_class.kinds[0]
        return self.model.head(self.model.forward_features(pixel_values), kind=kind)


def export_onnx(model: SelfExplaining, path: str | Path, tolerance: float = 1e-4, overwrite: bool = False) -> Path:
    """Write a model to an ONNX file with the input `pixel_values` and the outputs `logits` and `maps`.

    The batch is dynamic, and so are height and width where the architecture accepts any size. The file
    appears only after onnxruntime has computed the same outputs on another batch size. Weights of more than
    1.5 GB lie in a second file beside it, whose name is new for every export, so that an earlier export stays
    whole until it is replaced.

    The metadata of the file say which maps these are (`map_kind`) and, where it is known, where their cells lie in the
    image (`alignment`, JSON): row i at start[0] + step[0]·i pixels from the top, column j at start[1] + step[1]·j from
    the left.

    Args:
        model: timm or Hugging Face model of this package, with classes.
        path: File to write.
        tolerance: Largest difference between torch and onnxruntime, relative to the largest output.
        overwrite: Replace a file that exists.

    Returns:
        Path of the file.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{HINT} ({error.name} is missing)") from error
    if not model.num_classes:
        raise ValueError("export_onnx() needs classes: this model has num_classes=0; call reset_classifier(n) first")
    measure_on_first_use(model)
    path, exported = Path(path), _LogitsAndMaps(model)
    check_replaceable(path, overwrite)
    remove_drafts(path.parent, older_than=ABANDONED)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=DRAFT) as folder, evaluation_mode(exported):
        draft = Path(folder) / f"{path.stem}-{secrets.token_hex(6)}{path.suffix}"  # its weights are named after it
        try:
            _export(exported, model, draft, tolerance)
            flush(draft.parent)
            check_replaceable(path, overwrite)  # again, as an export can last minutes
            for weights in draft.parent.iterdir():
                if weights != draft:
                    os.replace(weights, path.with_name(weights.name))
            os.replace(draft, path)
        except OSError as error:
            raise (unwritable(path, error) if error.errno in FULL else error) from error
    return path


def _export(exported: nn.Module, model: SelfExplaining, file: Path, tolerance: float) -> None:
    """Write an ONNX file and compare its outputs with those of torch."""
    import onnxruntime

    channels, height, width = model.input_size
    fixed = model.pretrained_cfg.get("fixed_input_size", False)
    batch = torch.export.Dim("batch", min=1, max=4096)
    sides = {} if fixed else {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        exported,
        kwargs={"pixel_values": torch.zeros(2, channels, height, width)},
        dynamo=True,
        output_names=["logits", "maps"],
        dynamic_shapes={"pixel_values": {0: batch, **sides}},
        opset_version=18,
        verbose=False,
    )
    assert program is not None  # it is None without dynamo
    program.model.metadata_props.update(_metadata(model))
    program.save(file, external_data=False)
    other = (height, width) if fixed else (height + 32, width + 64)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    _check_outputs(exported, session, torch.randn(3, channels, *other), tolerance)


def _metadata(model: SelfExplaining) -> dict[str, str]:
    """Return what consumers of the file need to draw its maps."""
    metadata = {"map_kind": model.head_class.kinds[0]}
    if model.alignment is not None and model.alignment.is_known:
        metadata["alignment"] = json.dumps(model.alignment.as_dict())
    return metadata


@torch.no_grad()
def _check_outputs(exported: nn.Module, session: Any, images: Tensor, tolerance: float) -> None:
    """Raise RuntimeError where onnxruntime computes other logits or maps than torch."""
    outputs = session.run(None, {"pixel_values": images.numpy()})
    for name, expected, output in zip(("logits", "maps"), exported(images), outputs, strict=True):
        error = float((expected - torch.from_numpy(output)).abs().max() / expected.abs().max())
        if not error <= tolerance:
            raise RuntimeError(
                f"the exported {name} differ from torch's by {error:.1e} of the largest value, more than "
                f"{tolerance:.0e}: no file was written"
            )
