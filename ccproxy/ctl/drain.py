"""
C{ccproxyctl drain}: the daemon takes no new VMs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .adminclient import AdminClient
from .asking import ask, askingParser, show


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "drain",
        "Have the daemon take no new VMs. Those that are registered go on, with all that starts in "
        "them, until they are unregistered; then nothing is left that a stop would end.",
    )
    parser.add_argument("--off", action="store_true", help="take new VMs again")
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{drain}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)

    async def work(client: AdminClient) -> None:
        await client.ask("POST", "/v1/drain", {"draining": not options.off})
        left = len(await client.get("/v1/vms"))
        show([f"The daemon takes {'new' if options.off else 'no new'} VMs; it has {left}."])

    return ask(parser, options, work)
