"""
C{ccproxyctl sessions}: the processes in the VMs, from their tokens to their ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .asking import askingParser, showTable
from .tables import Column, plain, quantity, size, span


def _lost(value: Any) -> str:
    return size(sum(value.values())) if value else plain(value)


COLUMNS = (
    Column("VM", "vm"),
    quantity("SERIAL", "serial"),
    Column("SESSION", "session"),
    Column("STATE", "state"),
    quantity("AGE", "age", span),
    Column("CONTAINER", "container"),
    Column("PROCESS", "process"),
    Column("TTY", "terminal"),
    quantity("SHIM", "shim"),
    quantity("STATUS", "status"),
    quantity("OUTPUT", "bufferedOutput", size),
    quantity("STDIN", "bufferedInput", size),
    quantity("DROPPED", "dropped", size),
    quantity("LOST", "lost", _lost),
)


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "sessions",
        "List the sessions of all VMs, or of one: a session is one process, from its token to its "
        "end. SHIM is the number of the client that stands for it; OUTPUT and STDIN are the bytes "
        "that wait in the daemon, DROPPED those that nobody has read for too long, LOST those that "
        "crashes of the daemon have cost.",
        json=True,
        unknown=True,
    )
    parser.add_argument("vm", nargs="?", metavar="VM", help="list only those of VMs of this name")
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{sessions}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    none = "There are no sessions."
    return showTable(parser, options, "/v1/sessions", COLUMNS, none, vm=options.vm)
