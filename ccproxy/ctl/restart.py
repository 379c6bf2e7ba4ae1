"""
C{ccproxyctl restart}: another daemon takes the place of the one that runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

from ..net.deadlines import looks
from .adminclient import AdminClient, AdminError, Broken, NoDaemon
from .arguments import seconds
from .asking import ask, askingParser, show

#: Seconds between two looks for the new daemon.
LOOK = 0.1
#: Seconds to wait for a daemon that does not answer at first, since it may be restarting.
AWAY_TIMEOUT = 5.0


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "restart",
        "Have the daemon hand over to a new one, which closes no connection and loses nothing: "
        "after an upgrade, for example. It must have been started by its systemd unit or by "
        "ccproxyctl supervise. The command waits until the new one answers.",
    )
    parser.add_argument(
        "--timeout",
        type=seconds(0),
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for the new one; 0 is not at all (default: %(default)g)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{restart}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    return ask(parser, options, lambda client: restart(client, options.timeout))


async def restart(client: AdminClient, timeout: float) -> None:
    """
    Restart the daemon, and wait for its successor.

    @raise AdminError: there is none in time, or the daemon cannot restart.
    """
    before = await _statusBefore(client)
    try:
        await client.ask("POST", "/v1/restart")
    except (Broken, NoDaemon):
        if not timeout:
            raise
        # Another restart has ended it before it could answer: wait for the successor.
    if not timeout:
        show(["The daemon is restarting."])
        return
    for _ in looks(time.monotonic() + timeout):
        time.sleep(LOOK)  # nothing else happens here
        try:
            after = await client.get("/v1/status")
        except AdminError:
            continue
        # In a container each daemon may be process 1.
        if after["startedAt"] != before["startedAt"]:
            versions = f"version {after['version']}, before {before['version']}"
            show([f"The daemon has restarted: pid {after['pid']}, {versions}."])
            return
    raise AdminError(
        f"the daemon was told to restart, and no other has answered within {timeout:g} s: the log "
        "says why"
    )


async def _statusBefore(client: AdminClient) -> Any:
    """
    The status of the daemon, or of its successor if it is just being restarted.

    @raise AdminError: there is none.
    """
    deadline = time.monotonic() + AWAY_TIMEOUT
    while True:
        try:
            return await client.get("/v1/status")
        except (Broken, NoDaemon):
            # A socket without a daemon behind it is left by one that has handed over, or has died.
            if not os.path.exists(client.path) or time.monotonic() > deadline:
                raise
        time.sleep(LOOK)
