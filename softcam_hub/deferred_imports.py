"""Imports that wait: public names until they are used, and actions until another package is imported.

transformers takes longer to import than timm, and many programs that use our timm models never need it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def import_name(package: str, modules: Mapping[str, Sequence[str]], name: str) -> Any:
    """Return what a package calls `name`: a name from one of its modules, or a module; the package's `__getattr__`.

    Args:
        package: Name of the package. It keeps the value, and is asked only once.
        modules: Module below the package -> the names that the package has from it.
        name: Name to import.
    """
    for module, names in modules.items():
        if name in names:
            value = getattr(importlib.import_module(f"{package}.{module}"), name)
            setattr(sys.modules[package], name, value)
            return value
    if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
        return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])


def run_after_import(module: str, action: Callable[[], None], needs: Sequence[str] = ()) -> None:
    """Run an action once a module has been imported: now, or at the end of its first import.

    Args:
        module: Whole name of the module.
        action: What to do, once. If it raises an exception, so does the import.
        needs: Modules from which the action imports. The action waits while one of them is being imported, which is
            where an import that leads in a circle would find a part of that module only.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _waiting.append(_Action(module, action, tuple(needs)))
    _run_ready_actions()


@dataclass(frozen=True, eq=False)
class _Action:
    module: str
    run: Callable[[], None]
    needs: tuple[str, ...]


_waiting: list[_Action] = []
_executed: set[str] = set()
"""Modules whose own code has run to its end, although Python may still be at work on their import."""


def _run_ready_actions() -> None:
    for action in list(_waiting):
        ready = _is_imported(action.module) and not any(map(_is_half_imported, action.needs))
        if ready and action in _waiting:  # an action before may have imported more, which runs others
            _waiting.remove(action)
            try:
                action.run()
            except BaseException:
                _waiting.append(action)
                raise


def _is_imported(name: str) -> bool:
    return name in sys.modules and not _is_half_imported(name)


def _is_half_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return name not in _executed and getattr(spec, "_initializing", False)


class _Finder(MetaPathFinder):
    """Leave it to the other finders to find a module, and look at the end of its import for actions to run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(fullname in (action.module, *action.needs) for action in _waiting):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    """Load a module with its own loader, which the module keeps, and run the actions that are ready then."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        _executed.discard(module.__name__)
        self.loader.exec_module(module)
        _executed.add(module.__name__)
        _run_ready_actions()


_FINDER = _Finder()
