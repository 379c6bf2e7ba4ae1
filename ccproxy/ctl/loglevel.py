"""
C{ccproxyctl loglevel}: how much the daemon logs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .adminclient import AdminClient
from .asking import ask, askingParser, show, showJSON
from .tables import plain

LEVELS = ("debug", "info", "warn", "error")


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "loglevel",
        "Show the least severe level that the daemon logs, or set it until the daemon ends or is "
        "reloaded.",
        json=True,
    )
    parser.add_argument("level", nargs="?", choices=LEVELS, help="log this and what is more severe")
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{loglevel}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)

    async def work(client: AdminClient) -> None:
        if options.level is not None:
            await client.ask("PUT", "/v1/loglevel", {"level": options.level})
        found = await client.get("/v1/loglevel")
        if options.json:
            showJSON(found)
        else:
            show([plain(found["level"])])

    return ask(parser, options, work)
