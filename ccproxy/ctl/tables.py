"""
Lists as people read them: columns, and quantities that they can compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from .printable import printable, width


def plain(value: object) -> str:
    """Any value of JSON in a cell; what is absent is a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(plain(each) for each in value) or "-"
    return printable(f"{value:g}" if isinstance(value, float) else str(value))


def size(value: Any) -> str:
    """A number of bytes: C{0}, C{812}, C{1.5K}, C{13M}."""
    if not isinstance(value, (int, float)):
        return plain(value)
    number = float(value)
    for unit in ("", "K", "M", "G", "T"):
        # What would be shown as 1024 of a unit is one of the next.
        if number < 1023.5 or unit == "T":
            break
        number /= 1024
    return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"


def span(value: Any) -> str:
    """A number of seconds: C{0.3s}, C{12s}, C{5m03s}, C{2h05m}, C{3d04h}."""
    if not isinstance(value, (int, float)):
        return plain(value)
    if value < 9.95:
        return f"{value:.1f}s"
    seconds = round(value)
    if seconds < 60:
        return f"{seconds}s"
    for least, unit, part, symbol in ((3600, 60, 1, "ms"), (86400, 3600, 60, "hm")):
        if seconds < least:
            return f"{seconds // unit}{symbol[0]}{seconds % unit // part:02}{symbol[1]}"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02}h"


@attrs.frozen
class Column:
    """
    A column of a table.

    @ivar title: its heading.
    @ivar field: the member of each row that it shows; dots lead into objects.
    @ivar show: makes the text of it.
    @ivar right: whether it is aligned to the right, as quantities are.
    """

    title: str
    field: str
    show: Callable[[Any], str] = plain
    right: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """What the row has in this column."""
        return self.show(member(row, self.field))


def quantity(title: str, field: str, show: Callable[[Any], str] = plain) -> Column:
    """A column of quantities."""
    return Column(title, field, show, right=True)


def member(row: Any, path: str) -> Any:
    """A member of an object of JSON, or L{None}; dots lead into objects."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def grid(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines of a table, with its headings."""
    cells = [[column.title for column in columns]]
    cells += [[column.text(row) for column in columns] for row in rows]
    widths = [max(map(width, texts)) for texts in zip(*cells, strict=True)]
    lines = []
    for texts in cells:
        padded = []
        for text, column, room in zip(texts, columns, widths, strict=True):
            space = " " * (room - width(text))
            padded.append(space + text if column.right else text + space)
        lines.append("  ".join(padded).rstrip())
    return lines


def pairs(columns: Sequence[Column], row: Mapping[str, Any]) -> list[str]:
    """The lines of one thing: what a table has as columns, one below the other."""
    room = max(width(column.title) for column in columns)
    return [f"{column.title:<{room}}  {column.text(row)}" for column in columns]
