"""Imports that wait: public names until they are used, and actions until another package is imported.

transformers takes longer to import than timm, and many programs that use our timm models never need it.
"""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def import_name(package: str, modules: Mapping[str, Sequence[str]], name: str) -> Any:
    """Import what a package calls `name`, a name from one of its modules or a module itself: for its `__getattr__`.

    Args:
        package: Name of the package. It keeps the value, and is asked only once.
        modules: Module below the package -> the names that the package has from it.
        name: Name to import.
    """
    run_ready_actions()
    for module, names in modules.items():
        if name in names:
            value = getattr(importlib.import_module(f"{package}.{module}"), name)
            setattr(sys.modules[package], name, value)
            return value
    if name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
        return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])


@dataclass(frozen=True, eq=False)
class AfterImport:
    """What to do once a module has been imported.

    Args:
        module: Whole name of the module.
        run: What to do. If it raises an exception, so does the import.
        needs: Modules from which `run` imports. It waits while one of them is being imported, as it would find only a
            part of that module.
    """

    module: str
    run: Callable[[], None]
    needs: Sequence[str] = ()


def run_after_imports(actions: Sequence[AfterImport]) -> None:
    """Run every action once, when its module has been imported: now, or at the end of its first import."""
    if _FINDER not in sys.meta_path:
        # a copy of this module that was imported before has left its own finder
        sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_own(finder)]
        sys.meta_path.insert(0, _FINDER)
    _waiting.extend(actions)
    for name in {name for action in actions for name in (action.module, *action.needs)}:
        if _is_half_imported(name):
            importlib.import_module(name)  # by another thread, whose end of the import no finder sees any more
    run_ready_actions()


def _is_own(finder: Any) -> bool:
    return (type(finder).__module__, type(finder).__qualname__) == (_Finder.__module__, _Finder.__qualname__)


_waiting: list[AfterImport] = []
_executed: set[str] = set()
"""Modules whose code has run to its end, and whose actions are run, while Python is still at work on their import."""


def run_ready_actions() -> None:
    """Run the actions whose modules have been imported."""
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

    def __init__(self) -> None:
        self.asking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(fullname in (action.module, *action.needs) for action in _waiting):
            return None
        if getattr(self.asking, "name", None) == fullname:  # by a finder that asks all others, as this one does
            return None
        self.asking.name = fullname
        try:
            specs = (finder.find_spec(fullname, path, target) for finder in self._others())
            spec = next((spec for spec in specs if spec is not None), None)
        finally:
            self.asking.name = None
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec

    def _others(self) -> list[Any]:
        return [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]


class _Loader(Loader):
    """Load a module with its own loader, which the module keeps, and run the actions that are ready then."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # of a loader that is being copied
            raise AttributeError(name)
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        _executed.add(module.__name__)
        try:
            run_ready_actions()
        finally:
            _executed.discard(module.__name__)


_FINDER = _Finder()
