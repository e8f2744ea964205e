"""Graphs of our timm models for `torch.fx` and TorchScript, in which the modules that timm names stay whole."""

import sys
from collections.abc import Callable
from typing import Any

from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn


class Tracer(fx.Tracer):
    """Trace as timm's own feature extraction does: its functions and modules with data-dependent sizes are leaves."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()), param_shapes_constant=True)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if hasattr(m, "replaced"):  # a norm or backbone with a forward of ours, see `backbone.replace_forward`
            return False
        return isinstance(m, tuple(get_notrace_modules())) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """Return the graph of a model, without the checks of its inputs.

    Args:
        model: A timm model; the graph keeps its mode, training or evaluation.
    """
    traced = fx.GraphModule(model, Tracer().trace(model))
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def keep_functions_whole(backbone: nn.Module) -> None:
    """Make the functions that timm names leaves for every tracer of a model that holds the backbone.

    A tracer finds such functions in the files of the modules that it calls. Our models call `forward_features` of the
    backbone, which is a method, so the backbone's own file has to be named. `fx.wrap` names the file from which it is
    called at the top level, so that the call is made in the name of that file.

    Args:
        backbone: A timm model.
    """
    file = vars(sys.modules[type(backbone).__module__])
    functions: list[Callable[..., Any]] = get_notrace_functions()
    for function in functions:
        if file.get(function.__name__) is function:
            exec("wrap(name)", file, {"wrap": fx.wrap, "name": function.__name__})
