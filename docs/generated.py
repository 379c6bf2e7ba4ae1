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
from ccproxy.service.options import Options
from ccproxy.service.settings import optionName


def table(header: Sequence[str], rows: Iterable[Sequence[str]], widths: str = "auto") -> str:
    """A table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in (header, *rows):
        for index, cell in enumerate(row):
            lines.append(f"   {' ' if index else '*'} - {cell}".rstrip())
    return "\n".join([*lines, "", ""])


def options() -> dict[str, tuple[str, str]]:
    """Every option of C{twistd ccproxy}: its default and what it does."""
    parsed = Options()
    found = {name: ("", text) for name, _, text in parsed.optFlags}
    found |= {row[0]: (row[2] or "", row[3]) for row in parsed.optParameters}
    found |= {name: ("", text) for name, text in parsed.docs.items() if name not in found}
    return {name: entry for name, entry in found.items() if name not in ("version", "help")}


def optionTable(chosen: Iterable[str]) -> str:
    """The table of these options."""
    known = options()
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
    limits = [name for name in fields if name in options()]
    parts = {
        "options": optionTable(name for name in options() if name not in limits),
        "limits": optionTable(limits),
        "flags": flagTable(),
        "client-states": stateTable(states.CLIENT_TABLE),
        "session-states": stateTable(states.SESSION_TABLE),
        "vm-states": stateTable(states.VM_TABLE),
    }
    for name, text in parts.items():
        (folder / f"{name}.rst").write_text(text)
