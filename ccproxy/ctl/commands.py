"""
C{ccproxyctl commands}: what waits for an answer, and for what it waits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .asking import askingParser, showTable
from .tables import Column, quantity, span

COLUMNS = (
    quantity("AGE", "age", span),
    Column("COMMAND", "command"),
    Column("WAITS FOR", "awaits"),
    Column("VM", "vm"),
    quantity("SERIAL", "serial"),
    quantity("CLIENT", "client"),
    Column("GIVEN UP", "expired"),
)


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    return askingParser(
        "commands",
        "List the commands that have no answer yet, the oldest first, and what they wait for: the "
        "agent's answer, its READY, their turn, a shim, or the start of a process. GIVEN UP says "
        "that the client was told of the deadline; the agent may still answer.",
        json=True,
    )


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{commands}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    return showTable(parser, options, "/v1/commands", COLUMNS, "There are no commands pending.")
