"""
C{ccproxyctl clients}: who is connected to the client socket.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .asking import askingParser, showTable
from .tables import Column, quantity, size

COLUMNS = (
    quantity("CLIENT", "number"),
    Column("PEER", "peer"),
    Column("STATE", "state"),
    Column("VM", "vm"),
    Column("SHIM OF", "session"),
    quantity("UNANSWERED", "unanswered"),
    quantity("UNSENT", "unsent", size),
)


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    return askingParser(
        "clients",
        "List the connections of runtimes and shims: the process and user at their other ends, "
        "their VM, the session that a shim stands for, how many of their commands have no answer "
        "yet, and the bytes that they have not read.",
        json=True,
    )


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{clients}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    return showTable(parser, options, "/v1/clients", COLUMNS, "There are no clients.")
