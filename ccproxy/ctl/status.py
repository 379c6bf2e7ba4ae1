"""
C{ccproxyctl status}: what the daemon is, and how it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .adminclient import AdminClient
from .asking import ask, askingParser, show, showJSON
from .tables import Column, pairs, plain, size, span


def counted(counts: Any) -> str:
    """Numbers by state: how many in all, then those states that there are."""
    if not isinstance(counts, dict):
        return plain(counts)
    found = ", ".join(f"{plain(count)} {plain(state)}" for state, count in counts.items() if count)
    return f"{sum(counts.values())} ({found})" if found else "0"


COLUMNS = (
    Column("Version", "version"),
    Column("Python", "python"),
    Column("Twisted", "twisted"),
    Column("Process", "pid"),
    Column("Started", "startedAt"),
    Column("Runs for", "uptime", span),
    Column("Socket", "socket"),
    Column("Draining", "draining"),
    Column("Log level", "logLevel"),
    Column("VMs", "counts.vms", counted),
    Column("Sessions", "counts.sessions", counted),
    Column("Clients", "counts.clients", counted),
    Column("Shims", "counts.shims"),
    Column("Commands pending", "counts.commands"),
    Column("Buffered bytes", "bufferedBytes", size),
    Column("Frames ignored", "ignoredFrames"),
)


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    return askingParser(
        "status",
        "Show what the daemon is: its version, how long it runs, what it has to do. "
        "That it answers is the exit status.",
        json=True,
    )


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{status}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)

    async def work(client: AdminClient) -> None:
        status = await client.get("/v1/status")
        if options.json:
            showJSON(status)
        else:
            show(pairs(COLUMNS, status))

    return ask(parser, options, work)
