"""
The parts of the documentation that the code knows best: its options, limits and states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any

import attrs
from twisted.internet.task import Clock

from ccproxy.admin.events import Events
from ccproxy.admin.health import Health
from ccproxy.admin.looplag import LoopLag
from ccproxy.admin.metrics import DaemonCollector
from ccproxy.admin.openapi import document
from ccproxy.admin.routes import ROUTES
from ccproxy.config.settings import optionName
from ccproxy.core import states
from ccproxy.core.context import Context
from ccproxy.core.limits import Limits
from ccproxy.core.registry import Registry
from ccproxy.core.states import I, S
from ccproxy.ctl import ccproxyctl
from ccproxy.ctl.asking import STATUSES
from ccproxy.ctl.manpages import daemonOptions
from ccproxy.service.ccproxy_command import FLAGS


def table(header: Sequence[str], rows: Iterable[Sequence[str]], widths: str = "auto") -> str:
    """A table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in (header, *rows):
        for index, cell in enumerate(row):
            lines.append(f"   {' ' if index else '*'} - {cell}".rstrip())
    return "\n".join([*lines, "", ""])


def optionTable(chosen: Iterable[str]) -> str:
    """The table of these options."""
    known = daemonOptions()
    rows = []
    for name in chosen:
        default, text = known[name]
        rows.append([f"``--{name}``", f"``{default}``" if default else "", text])
    return table(["option", "default", "meaning"], rows, "25 20 55")


def flagTable() -> str:
    """The table of the flags of C{cc-proxy}."""
    rows = [
        [f"``-{flag.name}``", f"``{flag.default}``" if flag.default else "", flag.help]
        for flag in FLAGS
    ]
    return table(["flag", "default", "meaning"], rows, "20 15 65")


def commandTable() -> str:
    """The table of the commands of C{ccproxyctl}."""
    rows = [[f"``{name}``", help] for name, (_, help) in ccproxyctl.COMMANDS.items()]
    return table(["command", "what it does"], rows, "20 80")


def statusTable() -> str:
    """The table of the exit statuses of those that ask the daemon."""
    return table(["status", "meaning"], ([str(n), text] for n, text in STATUSES.items()), "20 80")


def routeTable() -> str:
    """The table of what can be asked of the admin socket."""
    rows = []
    for route in ROUTES:
        query = "".join(f" ``?{each.name}=``: {each.help}." for each in route.query)
        kind = route.type
        if isinstance(route.result, GenericAlias):
            kind = f"list of {route.result.__args__[0].__name__}"
        elif route.result is not None:
            kind = route.result.__name__
        rows.append([f"``{route.method}``", f"``{route.path}``", f"{route.summary}.{query}", kind])
    return table(["method", "path", "what it does", "answer"], rows, "8 26 46 20")


def viewLists() -> str:
    """The fields of everything that the admin socket shows."""
    lines = []
    schemas = document()["components"]["schemas"]
    for name, schema in schemas.items():
        if name == "Limits" or not schema.get("properties"):
            continue  # the limits have a table of their own
        lines += [f"**{name}**: {schema['description']}", ""]
        for field, place in schema["properties"].items():
            text = place["description"].rstrip(".")
            (reference,) = place.get("allOf", [{}])
            values = schemas.get(reference.get("$ref", "").rpartition("/")[2], place).get("enum")
            chosen = f": {', '.join(f'``{value}``' for value in values)}" if values else ""
            lines.append(f"* ``{field}``: {text}{chosen}.")
        lines.append("")
    return "\n".join(lines)


def metricTable() -> str:
    """The table of the daemon's own metrics."""
    clock: Any = Clock()
    nowhere: Any = None
    registry = Registry(Context(clock, clock.seconds), nowhere)
    health = Health(LoopLag(clock), 1.0, bool)
    rows = []
    for family in DaemonCollector(registry, health, Events(clock), int).collect():
        suffix = "_total" if family.type == "counter" else ""
        rows.append([f"``{family.name}{suffix}``", family.type, family.documentation])
    return table(["metric", "type", "meaning"], rows, "40 10 50")


def stateTable(transitions: Mapping[tuple[S, I], S]) -> str:
    """A lifecycle: a row for each state, a column for each input."""
    kinds = next(iter(transitions))
    inputs = list(type(kinds[1]))
    rows = []
    for state in type(kinds[0]):
        following = (transitions.get((state, input)) for input in inputs)
        rows.append([f"**{state.value}**", *(after.value if after else "" for after in following)])
    return table(["", *(input.value for input in inputs)], rows)


def write(folder: Path) -> None:
    """Write all parts, for the pages to include."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = [optionName(field.name) for field in attrs.fields(Limits)]
    limits = [name for name in fields if name in daemonOptions()]
    parts = {
        "options": optionTable(name for name in daemonOptions() if name not in limits),
        "limits": optionTable(limits),
        "flags": flagTable(),
        "commands": commandTable(),
        "statuses": statusTable(),
        "admin-routes": routeTable(),
        "admin-views": viewLists(),
        "metrics": metricTable(),
        "client-states": stateTable(states.CLIENT_TABLE),
        "session-states": stateTable(states.SESSION_TABLE),
        "vm-states": stateTable(states.VM_TABLE),
    }
    for name, text in parts.items():
        (folder / f"{name}.rst").write_text(text)
