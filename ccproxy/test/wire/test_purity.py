"""
C{wire/} and C{core/} know of no reactor, socket or file: their imports are walked to prove it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

from twisted.trial.unittest import SynchronousTestCase

PURE = ("ccproxy.wire", "ccproxy.core")
#: Ways to the outside world.
FORBIDDEN = (
    "asyncio",
    "fcntl",
    "io",
    "multiprocessing",
    "os",
    "pathlib",
    "pty",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "termios",
    "threading",
    "time",
    "twisted.internet",
    "twisted.application",
    "twisted.protocols",
    "twisted.python.filepath",
)
#: The rooms of ccproxy that a pure one may import from.
ROOMS_ABOVE = {
    "ccproxy.wire": ("ccproxy.errors", "ccproxy.interfaces", "ccproxy.wire"),
    "ccproxy.core": ("ccproxy.errors", "ccproxy.interfaces", "ccproxy.wire", "ccproxy.core"),
}


def modules(package: str) -> list[str]:
    """The names of a package's modules, the package itself first."""
    path = import_module(package).__path__
    return [package, *(module.name for module in walk_packages(path, package + "."))]


def isUnder(name: str, parents: tuple[str, ...]) -> bool:
    """Whether a module is one of some modules, or in one of these packages."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def imports(module: str) -> Iterator[str]:
    """The absolute names of all that a module's text imports, functions and branches included."""
    file = import_module(module).__file__
    assert file is not None
    path = Path(file)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


class PurityTests(SynchronousTestCase):
    """House rule: bytes in, events out; the clock is a parameter."""

    def test_walked(self) -> None:
        """The walk sees the modules, and relative imports by their absolute names."""
        self.assertIn("ccproxy.wire.frames", modules("ccproxy.wire"))
        self.assertIn("ccproxy.core.limits", modules("ccproxy.core"))
        found = set(imports("ccproxy.wire.frames"))
        self.assertLessEqual(
            {"struct", "attrs", "ccproxy.errors", "ccproxy.wire.codes.FrameType"}, found
        )

    def test_texts(self) -> None:
        """No module imports a way to the outside world, in no branch of its text."""
        for package in PURE:
            for module in modules(package):
                wrong = [name for name in imports(module) if isUnder(name, FORBIDDEN)]
                self.assertEqual(wrong, [], f"{module} imports {wrong}")

    def test_rooms(self) -> None:
        """No module imports from a room of ccproxy that is below it."""
        for package in PURE:
            for module in modules(package):
                wrong = [
                    name
                    for name in imports(module)
                    if isUnder(name, ("ccproxy",)) and not isUnder(name, ROOMS_ABOVE[package])
                ]
                self.assertEqual(wrong, [], f"{module} imports {wrong}")

    def test_loaded(self) -> None:
        """Nothing that they import brings twisted.internet with it."""
        names = [name for package in PURE for name in modules(package)]
        program = (
            f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
            "print([name for name in sys.modules if name.startswith('twisted.internet')])"
        )
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        self.assertEqual(ran.stdout.strip(), "[]")
