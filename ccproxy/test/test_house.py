"""
The architecture: no circle of imports, imports only downward in the list of folders, and private
attributes only for their own class.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ccproxy

#: The folders and modules of the package. Each may import from itself and from those before it.
FOLDERS = (
    "errors", "wire", "interfaces", "core", "net", "config", "log", "persist", "agent", "vm",
    "admin", "service", "shim", "ctl", "testing",
)  # fmt: skip


#: Folders in which nothing reads or writes another object's private attributes.
CLOSED = ("core", "net", "persist")


def modules() -> dict[str, ast.Module]:
    """Return the modules of the package without its tests, by their names."""
    root = Path(ccproxy.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if parts[1] != "test":
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_bytes())
    return found


def imports(name: str, tree: ast.Module, names: set[str]) -> Iterator[str]:
    """
    Yield the modules that a module imports, those included that it imports for types only.

    @param name: the module's name.
    @param names: all modules. Others are not yielded.
    """
    isPackage = any(other.startswith(f"{name}.") for other in names)
    base = name.split(".") if isPackage else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            inner = [f"{module}.{alias.name}" for alias in node.names]
            found = [each if each in names else module for each in inner]
        else:
            continue
        yield from (each for each in found if each in names and each != name)


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of modules that import each other, directly or not (Kosaraju)."""
    order: list[str] = []
    _walk(graph, list(graph), order)
    reverse: dict[str, set[str]] = {name: set() for name in graph}
    for name, imported in graph.items():
        for each in imported:
            reverse[each].add(name)
    found, met = [], set[str]()
    for name in reversed(order):
        if name not in met:
            together: list[str] = []
            _walk(reverse, [name], together, met)
            found.append(set(together))
    return [each for each in found if len(each) > 1]


def _walk(
    graph: dict[str, set[str]], starts: list[str], order: list[str], met: set[str] | None = None
) -> None:
    """Append what can be reached to C{order}, each behind all that it leads to."""
    met = set() if met is None else met
    for start in starts:
        if start in met:
            continue
        met.add(start)
        todo = [(start, iter(graph[start]))]
        while todo:
            name, following = todo[-1]
            new = next((each for each in following if each not in met), None)
            if new is None:
                order.append(name)
                todo.pop()
            else:
                met.add(new)
                todo.append((new, iter(graph[new])))


class ImportTests(SynchronousTestCase):
    """Imports between the modules of the package."""

    def setUp(self) -> None:
        trees = modules()
        names = set(trees)
        self.graph = {name: set(imports(name, tree, names)) for name, tree in trees.items()}

    def test_downward(self) -> None:
        """A module imports only from its own folder and from folders above it in the list."""

        def floor(name: str) -> int:
            return FOLDERS.index(name.split(".")[1])

        del self.graph["ccproxy"]
        upward = [
            f"{name} imports {each}"
            for name, imported in self.graph.items()
            for each in imported - {"ccproxy"}
            if floor(each) > floor(name)
        ]
        self.assertEqual(upward, [])

    def test_circles(self) -> None:
        """No module imports itself by way of others."""
        self.assertEqual(circles(self.graph), [])

    def test_circleFound(self) -> None:
        """A circle is found, and what only leads to it is not in it."""
        graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}
        self.assertEqual(circles(graph), [{"b", "c"}])


class PrivateTests(SynchronousTestCase):
    """Private attributes."""

    def test_own(self) -> None:
        """In the core and what surrounds it, each object keeps to its own."""
        found = [
            f"{name}:{node.lineno} .{node.attr}"
            for name, tree in modules().items()
            if name.split(".")[1:2] and name.split(".")[1] in CLOSED
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and ast.unparse(node.value) not in ("self", "cls", "os", "sys")
        ]
        self.assertEqual(found, [])
