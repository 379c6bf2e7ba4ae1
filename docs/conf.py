"""
Sphinx's configuration. The reference of the code is made by pydoctor within the same build.

Every name of another project that a docstring links to is looked up by importing it, so a link
cannot name what does not exist, and no network is needed.
"""

from __future__ import annotations

import builtins
import inspect
import pydoc
import re
import sys
import zlib
from pathlib import Path

import ccproxy

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = HERE / "_build"
sys.path.insert(0, str(HERE))

import generated  # noqa: E402

project = "ccproxy"
copyright = "the ccproxy authors"
version = release = ccproxy.__version__
extensions = ["sphinx.ext.intersphinx", "pydoctor.sphinx_ext.build_apidocs"]
default_role = "py:obj"
nitpicky = True
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Between container runtimes and the agents inside lightweight VMs",
    "fixed_sidebar": True,
    "page_width": "70em",
}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}

#: Where the documentation of each other project is.
HOMES = {
    "builtins": "https://docs.python.org/3/library",
    "twisted": "https://docs.twisted.org/en/stable/api",
    "zope": "https://zopeinterface.readthedocs.io/en/latest",
    "attrs": "https://www.attrs.org/en/stable",
    "msgspec": "https://jcristharif.com/msgspec",
    "hypothesis": "https://hypothesis.readthedocs.io/en/latest",
}


def linkedNames() -> dict[str, set[str]]:
    """The names outside of ccproxy that its docstrings link to, by project."""
    found: dict[str, set[str]] = {project: set() for project in HOMES}
    for path in (ROOT / "ccproxy").rglob("*.py"):
        for name in re.findall(r"L\{(?:[^{}<>]*<)?([\w.]+)>?\}", path.read_text()):
            first = "builtins" if hasattr(builtins, name) else name.partition(".")[0]
            if first in HOMES:
                found[first].add(name)
    return found


def location(name: str) -> str:
    """The page of a name, below its project's home."""
    thing = pydoc.locate(name)
    if hasattr(builtins, name):
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            return f"exceptions.html#{name}"
        return f"{'stdtypes' if inspect.isclass(thing) else 'constants'}.html#{name}"
    if thing is None:
        raise LookupError(f"a docstring links to {name}, which does not exist")
    owner, _, member = name.rpartition(".")
    if inspect.ismodule(thing) or inspect.isclass(thing):
        return f"{name}.html"
    return f"{owner}.html#{member}"


def inventory(names: set[str]) -> bytes:
    """A Sphinx inventory of these names, which is how pydoctor learns where links lead."""
    lines = "".join(f"{name} py:obj 1 {location(name)} -\n" for name in sorted(names))
    header = "# Sphinx inventory version 2\n# Project: names\n# Version: 1\n# zlib\n"
    return header.encode() + zlib.compress(lines.encode())


def inventories() -> list[str]:
    """pydoctor's options for the links, whose files are written here."""
    folder = BUILD / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    options = []
    for home, names in linkedNames().items():
        path = folder / f"{home}.inv"
        path.write_bytes(inventory(names))
        options.append(f"--intersphinx-file={path}::{HOMES[home]}")
    return options


generated.write(BUILD / "generated")

pydoctor_args = [
    "--docformat=epytext",
    "--project-name=ccproxy",
    f"--project-base-dir={ROOT}",
    "--privacy=HIDDEN:ccproxy.test",
    "--html-output={outdir}/api",
    "--theme=readthedocs",
    *inventories(),
    str(ROOT / "ccproxy"),
]
pydoctor_url_path = "api"
