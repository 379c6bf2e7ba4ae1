"""
Sphinx's configuration. The reference of the code is made by pydoctor within the same build.
"""

from __future__ import annotations

import builtins
import importlib
import re
import sys
import zlib
from pathlib import Path

from zope.interface.interface import InterfaceClass

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


def modules() -> set[str]:
    """The modules of other projects that ccproxy imports from, or links to."""
    found = {"builtins"}
    for path in (ROOT / "ccproxy").rglob("*.py"):
        text = path.read_text()
        for module, imported in re.findall(r"^ *from ([\w.]+) import \(?([\w, \n]+)", text, re.M):
            found |= {module} | {f"{module}.{name}" for name in re.findall(r"\w+", imported)}
        for name in re.findall(r"L\{(?:[^{}<>]*<)?([\w.]+)>?\}", text):
            found |= {name, name.rpartition(".")[0]}
    return {name for name in found if name.partition(".")[0] in HOMES and isModule(name)}


def isModule(name: str) -> bool:
    """Whether this is the name of a module, which is imported to know it."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def locations(module: str) -> dict[str, str]:
    """The names of a module and of its classes' members, with their pages below HOMES."""
    if module == "builtins":
        return {name: f"{builtinPage(getattr(builtins, name))}#{name}" for name in dir(builtins)}
    found = {module: f"{module}.html"}
    for name, thing in vars(importlib.import_module(module)).items():
        full = f"{module}.{name}"
        if isinstance(thing, (type, InterfaceClass)):
            members = thing.names(all=True) if isinstance(thing, InterfaceClass) else dir(thing)
            found |= {f"{full}.{member}": f"{full}.html#{member}" for member in members}
            found[full] = f"{full}.html"
        else:
            found[full] = f"{module}.html#{name}"
    return found


def builtinPage(thing: object) -> str:
    """The page of the library reference that has it."""
    if not isinstance(thing, type):
        return "functions.html" if callable(thing) else "constants.html"
    return "exceptions.html" if issubclass(thing, BaseException) else "stdtypes.html"


def inventories() -> list[str]:
    """
    pydoctor's options for links to other projects: a Sphinx inventory for each of them, which is
    written here, so that no network is needed.
    """
    folder = BUILD / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    header = "# Sphinx inventory version 2\n# Project: names\n# Version: 1\n# zlib\n"
    known: dict[str, dict[str, str]] = {home: {} for home in HOMES}
    for module in modules():
        known[module.partition(".")[0]] |= locations(module)
    for home, pages in known.items():
        lines = "".join(f"{name} py:obj 1 {page} -\n" for name, page in sorted(pages.items()))
        (folder / f"{home}.inv").write_bytes(header.encode() + zlib.compress(lines.encode()))
    return [f"--intersphinx-file={folder}/{home}.inv::{url}" for home, url in HOMES.items()]


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
