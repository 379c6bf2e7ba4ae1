"""
C{ccproxyctl vms}: the VMs that the daemon knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .adminclient import AdminClient
from .asking import ask, askingParser, show, showTable
from .printable import printable
from .tables import Column, plain, quantity, size, span


def waiting(blocked: Any) -> str:
    """For how long the output of a VM has waited, and for which session."""
    if not isinstance(blocked, dict):
        return plain(blocked)
    return f"{span(blocked.get('seconds'))} for {plain(blocked.get('session'))}"


COLUMNS = (
    Column("VM", "containerId"),
    quantity("SERIAL", "serial"),
    Column("STATE", "state"),
    quantity("AGE", "age", span),
    Column("AGENT", "dialect"),
    quantity("CLIENTS", "clients"),
    quantity("SESSIONS", "sessions"),
    quantity("SHIMS", "shims"),
    quantity("COMMANDS", "commands"),
    quantity("OUTPUT", "bufferedOutput", size),
    quantity("STDIN", "bufferedInput", size),
    Column("OUTPUT WAITS", "blocked", waiting),
)


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "vms",
        "List the VMs: registered ones, those that register, lost ones, and those that are gone "
        "but for output that a shim may still fetch. OUTPUT and STDIN are the bytes that wait in "
        "the daemon. OUTPUT WAITS tells of backpressure: for how long, and for whose shim.",
        json=True,
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print the names alone, one a line"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{vms}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    if not options.quiet:
        return showTable(parser, options, "/v1/vms", COLUMNS, "There are no VMs.")

    async def work(client: AdminClient) -> None:
        names = {vm["containerId"] for vm in await client.get("/v1/vms")}
        show([printable(name) for name in sorted(names)])

    return ask(parser, options, work)
