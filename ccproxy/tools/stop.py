"""
C{ccproxyctl stop}: the daemon ends in order.
"""

from __future__ import annotations

import argparse
import os
import select
from collections.abc import Sequence

from .adminclient import AdminClient, AdminError
from .arguments import seconds
from .asking import ask, askingParser, show


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "stop",
        "Have the daemon end in order: it takes no more clients, delivers what is under way for at "
        "most its --stop-timeout, and removes its sockets. The command waits until it has. The "
        "VMs of the hypervisor run on, without a proxy.",
    )
    parser.add_argument(
        "--timeout",
        type=seconds(0),
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for its end; 0 is not at all (default: %(default)g)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{stop}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    return ask(parser, options, lambda client: stop(client, options.timeout))


async def stop(client: AdminClient, timeout: float) -> None:
    """
    Stop the daemon, and wait for its end.

    @raise AdminError: it has not ended in time.
    """
    pid = (await client.get("/v1/status"))["pid"]
    try:
        process = os.pidfd_open(pid)
    except OSError:
        # It has ended meanwhile, or its processes are none of ours, as with a container's.
        timeout = 0.0
    await client.ask("POST", "/v1/stop")
    if not timeout:
        show(["The daemon is stopping."])
        return
    if not select.select([process], [], [], timeout)[0]:
        raise AdminError(
            f"the daemon was told to stop, and has not ended within {timeout:g} s: its log says "
            "what it waits for"
        )
    show(["The daemon has ended."])
