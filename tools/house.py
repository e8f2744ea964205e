"""Count what makes the package easy or hard to live in.

python -m tools.house             # this checkout
python -m tools.house ../other    # another checkout, such as an older one to compare with

- A *room* is a module or folder directly inside `softcam_hub/`. An *arrow* is an import of one room by another.
- A *circle* is a group of modules that import one another, directly or through others, also inside functions.
- An `Args` entry is *clipped* when it opens on a preposition or pronoun instead of naming the thing.
- A *family comparison* is a comparison with, or a dictionary keyed by, the name of a family outside `models/`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from softcam_hub.arguments import ArgumentParser

FAMILIES = {"softcam", "cape", "mu-cape"}
"""Names of families, and of a map kind that belongs to one of them."""

CLIPPED = re.compile(
    r"(a|as|at|by|for|from|how|in|into|it|its|of|on|that|their|these|those|to|what|where|which|who|whose|with)\b",
    re.IGNORECASE,
)
"""Opening of an `Args` entry that does not name a thing. An article followed by a noun is fine, see `_is_clipped`."""

Tree = dict[Path, ast.Module]


def measure(root: Path) -> dict[str, int]:
    """Return every count of a checkout.

    Args:
        root: Folder of the checkout, which holds `softcam_hub/` and `README.md`.
    """
    package = root / "softcam_hub"
    files = sorted(package.rglob("*.py"))
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    entries = [entry for node in nodes for entry in _argument_entries(node)]
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    return {
        "rooms": len(_rooms(package)),
        "arrows between rooms": len(_arrows(package, trees)),
        "modules in circles": sum(len(circle) for circle in _circles(package, trees)),
        "files": len(files),
        "lines": len(lines),
        "lines over 110 characters": sum(len(line) > 110 for line in lines),
        "statements": sum(isinstance(node, ast.stmt) for node in nodes),
        "comprehensions": sum(isinstance(node, comprehensions) for node in nodes),
        "longest function in lines": max(map(_length, nodes)),
        "entries of Args": len(entries),
        "clipped entries of Args": sum(map(_is_clipped, entries)),
        "family comparisons outside models/": sum(
            _compares_family(node)
            for file, tree in trees.items()
            if "models" not in file.relative_to(package).parts
            for node in ast.walk(tree)
        ),
        "lines of README.md": len((root / "README.md").read_text(encoding="utf-8").splitlines()),
    }


def _rooms(package: Path) -> set[str]:
    """Return the names of modules and folders inside the package, without caches and data files."""
    folders = {path.name for path in package.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    return folders | modules


def _imports(package: Path, file: Path, tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names, relative to the package, of the modules and members that a file imports."""
    inside = file.relative_to(package).parts[:-1]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = node.module.split(".") if node.module else []
        if node.level:
            base = [*inside[: len(inside) - node.level + 1], *module]
        elif module[0] == package.name:
            base = module[1:]
        else:
            continue
        for alias in node.names:
            yield ".".join([*base, alias.name])


def _arrows(package: Path, trees: Tree) -> set[tuple[str, str]]:
    """Return the pairs of rooms of which the first imports the second."""
    rooms = _rooms(package)
    pairs = set()
    for file, tree in trees.items():
        room = file.relative_to(package).parts[0].removesuffix(".py")
        targets = {name.split(".")[0] for name in _imports(package, file, tree)}
        pairs |= {(room, target) for target in targets if target in rooms and target != room}
    return pairs


def _circles(package: Path, trees: Tree) -> list[set[str]]:
    """Return the groups of modules that import one another, as sets of dotted names."""
    names = {file: ".".join(file.relative_to(package).with_suffix("").parts) for file in trees}
    modules = {name.removesuffix(".__init__") for name in names.values()}
    targets: dict[str, set[str]] = {}
    for file, tree in trees.items():
        own = names[file].removesuffix(".__init__")
        imported = {_module_of(name, modules) for name in _imports(package, file, tree)}
        targets[own] = imported - {own, ""}
    reachable = {module: _reachable(module, targets) for module in targets}
    circles = []
    for module in sorted(targets):
        circle = {other for other in reachable[module] if module in reachable[other]}
        if circle and circle not in circles:
            circles.append(circle)
    return circles


def _module_of(name: str, modules: set[str]) -> str:
    """Return the module that an imported name belongs to: itself, or what stands before its last dot."""
    return name if name in modules else name.rpartition(".")[0]


def _reachable(module: str, targets: dict[str, set[str]]) -> set[str]:
    """Return everything that a module imports, directly or through others."""
    seen: set[str] = set()
    waiting = list(targets[module])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += targets.get(name, ())
    return seen


def _argument_entries(node: ast.AST) -> Iterator[str]:
    """Yield the descriptions below `Args:` in the docstring of a class or function."""
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    below = re.split(r"^Args:$", ast.get_docstring(node) or "", maxsplit=1, flags=re.MULTILINE)[1:]
    for text in below:
        section = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
        yield from re.findall(r"^    [\w*, ]+: (.*)$", section, flags=re.MULTILINE)


def _is_clipped(entry: str) -> bool:
    """Tell whether an entry opens on a preposition or pronoun."""
    opening = CLIPPED.match(entry)
    return opening is not None and opening[0].lower() != "a"


def _compares_family(node: ast.AST) -> bool:
    """Tell whether a node decides something by the name of a family."""
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        operands = [node.value]
    elif isinstance(node, ast.Dict):
        operands = [key for key in node.keys if key is not None]
    else:
        return False
    constants = {leaf.value for operand in operands for leaf in ast.walk(operand) if isinstance(leaf, ast.Constant)}
    return bool(constants & FAMILIES)


def _length(node: ast.AST) -> int:
    """Return the number of lines of a function, and 0 for anything else."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return 0
    return (node.end_lineno or node.lineno) - node.lineno + 1


def main() -> int:
    parser = ArgumentParser("python -m tools.house", description="Count what makes the package easy to live in.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1], help="folder of a checkout")
    for name, count in measure(parser.parse_args().root).items():
        print(f"{count:>7,}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
