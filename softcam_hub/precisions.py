"""Precisions of exported files, and the 8-bit form of an ONNX model.

- Layers that multiply matrices compute in 8 bits: their weights are stored so, and onnxruntime quantises what they
  read while it computes (dynamic quantisation).
- Convolutions of the backbone store their weights in 8 bits and compute in float32: onnxruntime scales the weights
  once, when it loads the file. Convolutions in integers would be further from torch (`benchmarks/runtimes.py`).
- The 8-bit weights of matrices have no sign. On processors without VNNI, products with signed ones overflow 16 bits.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypeAlias

from .files import DRAFT

if TYPE_CHECKING:
    import onnx

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]

TOLERANCES: dict[str, float] = {"fp32": 1e-4, "fp16": 3e-2, "int8": 1e-1}
"""Precision -> largest difference from torch in float32 that an export accepts, relative to the largest output."""

FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "torch": ("fp32", "fp16"),
    "web": ("fp32", "int8"),
}
"""Format of an export -> its precisions."""

ARCHIVE = ".pt2"
"""Suffix of archives of `torch.export`: torch writes and reads no other."""

LARGE = 1_500_000_000
"""Bytes above which the weights lie in a file of their own: a file of the ONNX format holds at most 2 GB."""


def check_choice(file: Path, format: str, precision: str) -> None:
    """Refuse a precision that a format lacks, and a file whose name belongs to the other format."""
    if precision not in TOLERANCES:
        raise ValueError(f"unknown precision {precision!r}: expected one of {', '.join(TOLERANCES)}")
    if precision not in FORMATS[format]:
        raise ValueError(
            f"the format {format} has no precision {precision}: choose one of {', '.join(FORMATS[format])}, or export "
            "to ONNX"
        )
    if (format == "torch") != (file.suffix == ARCHIVE):
        what = "an archive of torch.export must have" if format == "torch" else "an ONNX file cannot have"
        raise ValueError(f"{what} a name that ends with {ARCHIVE}, got {file.name}: choose another name or format")


def write_int8(model: "onnx.ModelProto", file: Path) -> None:
    """Write an ONNX model with weights in 8 bits.

    Args:
        model: Model in float32. It may be changed.
        file: File to write. Weights of more than 1.5 GB lie in a second file beside it.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    added = {"onnx.quant.pre_process": "onnxruntime.quant", "onnx.infer": "onnxruntime.quant"}
    first = "onnx.quant.pre_process"  # without it, onnxruntime warns on the root logger
    model.metadata_props.add(key=first, value=added[first])
    with TemporaryDirectory(dir=file.parent, prefix=DRAFT) as folder:
        multiplied = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            multiplied,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            use_external_data_format=model.ByteSize() > LARGE,
        )
        quantised = onnx.load(multiplied)
    store_convolutions_in_8_bits(quantised)
    kept = [(entry.key, entry.value) for entry in quantised.metadata_props if entry.key not in added]
    onnx.helper.set_model_props(quantised, dict(kept))
    large = quantised.ByteSize() > LARGE
    onnx.save_model(quantised, file, save_as_external_data=large, location=f"{file.name}.data")


def store_convolutions_in_8_bits(model: "onnx.ModelProto", prefix: str = "model.backbone.") -> None:
    """Replace the weights W of convolutions by 8-bit integers q and a scale s per output channel, so that W ≈ s·q.

    The cast and the product depend on no input, so that onnxruntime computes them when it loads the file.
    DequantizeLinear would be computed again for every batch.

    Args:
        model: Model to change in place.
        prefix: Beginning of the names of weights to replace. Weights that the graph computes have other names.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    used = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    stored, restored = [], []
    for weight in graph.initializer:
        name = weight.name
        if name not in used or not name.startswith(prefix):
            stored.append(weight)
            continue
        values = numpy_helper.to_array(weight)
        largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
        scale = np.where(largest == 0, 1, largest / 127).astype(np.float32)  # a channel of zeros keeps its zeros
        integers = np.rint(values / scale).astype(np.int8)
        stored.append(numpy_helper.from_array(integers, f"{name}_int8"))
        stored.append(numpy_helper.from_array(scale, f"{name}_scale"))
        restored.append(helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=TensorProto.FLOAT))
        restored.append(helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]))
    nodes = [*restored, *graph.node]  # before the convolutions that read them
    for entries, field in ((stored, graph.initializer), (nodes, graph.node)):
        del field[:]
        field.extend(entries)
