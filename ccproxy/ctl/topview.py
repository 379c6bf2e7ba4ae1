"""
What C{ccproxyctl top} shows: rates out of counters, an order, and lines that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from .printable import cut
from .status import counted
from .tables import Column, grid, member, plain, quantity, size, span
from .vms import waiting

#: The counters of each VM that become rates.
COUNTERS = ("outBytes", "outFrames", "inBytes", "inFrames")

COLUMNS = (
    Column("VM", "containerId"),
    quantity("SERIAL", "serial"),
    Column("STATE", "state"),
    quantity("OUT/S", "outBytes", size),
    quantity("FRAMES/S", "outFrames", lambda rate: f"{rate:.0f}"),
    quantity("IN/S", "inBytes", size),
    quantity("OUTPUT", "bufferedOutput", size),
    quantity("STDIN", "bufferedInput", size),
    quantity("SESSIONS", "sessions"),
    quantity("SHIMS", "shims"),
    quantity("COMMANDS", "commands"),
    Column("OUTPUT WAITS", "blocked", waiting),
)

_Row = Mapping[str, Any]


def _throughput(row: _Row) -> tuple[Any, ...]:
    return (-row["outBytes"] - row["inBytes"], row["serial"])


def _buffers(row: _Row) -> tuple[Any, ...]:
    return (-row["bufferedOutput"] - row["bufferedInput"], row["serial"])


def _state(row: _Row) -> tuple[Any, ...]:
    return (row["state"], row["serial"])


def _name(row: _Row) -> tuple[Any, ...]:
    return (row["containerId"], row["serial"])


#: The orders, by the keys that choose them.
ORDERS: dict[str, tuple[str, Callable[[_Row], tuple[Any, ...]]]] = {
    "t": ("throughput", _throughput),
    "b": ("buffers", _buffers),
    "s": ("state", _state),
    "n": ("name", _name),
}


class Rates:
    """Counters become rates: how much each has grown since the last look, for each second."""

    def __init__(self) -> None:
        self._before: dict[int, _Row] = {}
        self._then = 0.0

    def rows(self, vms: Sequence[_Row], now: float) -> list[dict[str, Any]]:
        """
        The VMs with their rates, which are 0 for one that was not seen before.

        @param vms: what the daemon says of them.
        @param now: when it said so, in seconds.
        """
        seconds = max(now - self._then, 1e-3)
        rows = []
        for vm in vms:
            before = self._before.get(vm["serial"], vm)
            rates = {name: max(0.0, vm[name] - before[name]) / seconds for name in COUNTERS}
            rows.append({**vm, **rates})
        self._before, self._then = {vm["serial"]: vm for vm in vms}, now
        return rows


@attrs.define(eq=False)
class View:
    """
    What is to be seen.

    @ivar status: the daemon.
    @ivar rows: the VMs, with their rates.
    @ivar order: the key of the order that they are in.
    @ivar first: how many of them are scrolled away.
    @ivar trouble: why what is seen is old, or nothing.
    """

    status: _Row = attrs.field(factory=dict)
    rows: Sequence[_Row] = ()
    order: str = "t"
    first: int = 0
    trouble: str = ""

    def lines(self, columns: int, rows: int) -> list[str]:
        """
        The lines of the screen, the third of which is the heading.

        @param columns: how long they may be.
        @param rows: how many there may be.
        """
        table = grid(COLUMNS, sorted(self.rows, key=ORDERS[self.order][1]))
        self.first = max(0, min(self.first, len(table) - 2))
        lines = [self._daemon(), self.trouble or self._sums(), *table[:1], *table[1 + self.first :]]
        return [cut(line, columns) for line in lines[:rows]]

    def _daemon(self) -> str:
        def of(path: str, show: Callable[[Any], str] = plain) -> str:
            return show(member(self.status, path))

        text = (
            f"ccproxy {of('version')}  pid {of('pid')}  up {of('uptime', span)}  "
            f"VMs {of('counts.vms', counted)}  sessions {of('counts.sessions', counted)}"
        )
        return f"{text}  DRAINING" if member(self.status, "draining") else text

    def _sums(self) -> str:
        def total(name: str) -> str:
            return size(sum(row[name] for row in self.rows))

        keys = ", ".join(f"{key} {name}" for key, (name, _) in ORDERS.items())
        return (
            f"out {total('outBytes')}/s  in {total('inBytes')}/s  "
            f"buffered {size(member(self.status, 'bufferedBytes'))}  "
            f"by {ORDERS[self.order][0]}  keys: {keys}, arrows scroll, q quits"
        )
