"""
The parts of the documentation that the code knows best: its options, limits and states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path

import attrs

from ccproxy.core import states
from ccproxy.core.limits import Limits
from ccproxy.service.ccproxy_command import FLAGS
from ccproxy.service.settings import optionName
from ccproxy.tools import ccproxyctl
from ccproxy.tools.asking import STATUSES
from ccproxy.tools.manpages import daemonOptions


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


def stateTable(transitions: Mapping[tuple[Enum, Enum], Enum]) -> str:
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
        "client-states": stateTable(states.CLIENT_TABLE),
        "session-states": stateTable(states.SESSION_TABLE),
        "vm-states": stateTable(states.VM_TABLE),
    }
    for name, text in parts.items():
        (folder / f"{name}.rst").write_text(text)
