"""
C{ccproxyctl dump}: everything that the daemon knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .adminclient import AdminClient
from .asking import ask, askingParser, showJSON


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    return askingParser(
        "dump",
        "Print the whole state of the daemon as JSON: its status, limits, VMs, sessions, clients "
        "and pending commands, for a report or a look afterwards. No payload and no whole token "
        "is in it.",
    )


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{dump}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)

    async def work(client: AdminClient) -> None:
        showJSON(await client.get("/v1/dump"))

    return ask(parser, options, work)
