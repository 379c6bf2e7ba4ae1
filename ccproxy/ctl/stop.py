"""
C{ccproxyctl stop}: the daemon ends in order.
"""

from __future__ import annotations

import argparse
import select
import socket
import time
from collections.abc import Mapping, Sequence

from ..net.binding import peerProcess
from ..net.deadlines import looks
from .adminclient import ANSWER_TIMEOUT, AdminClient, AdminError, NoDaemon
from .arguments import seconds
from .asking import ask, askingParser, show

#: Seconds between two looks whether the daemon listens.
LOOK = 0.1
#: Seconds to wait for the process to exit once it has closed its sockets: it may still log.
EXIT_TIMEOUT = 2.0
#: Seconds in which a socket gives what has come already.
_AT_ONCE = 0.001


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
    Stop the daemon, and wait until a connection to it ends. The process id that it tells is of no
    use for that: the daemon may be in another PID namespace, where other processes have our ids.

    @raise AdminError: it has not ended in time.
    """
    before = await client.get("/v1/status")
    connection = _connect(client.path)
    process = None if connection is None else peerProcess(connection)
    await client.ask("POST", "/v1/stop")
    if not timeout:
        show(["The daemon is stopping."])
        return
    deadline = time.monotonic() + timeout
    while connection is not None:
        with connection:
            if not _closed(connection, deadline):
                raise AdminError(
                    f"the daemon was told to stop, and has not ended within {timeout:g} s: its log "
                    "says what it waits for"
                )
        connection = await _connectAgain(client, before)
    if process is not None:
        select.select([process], [], [], EXIT_TIMEOUT)
    show(["The daemon has ended."])


def _connect(path: str) -> socket.socket | None:
    """Connect to the admin socket. Return L{None} if no process listens there."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_TIMEOUT)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


def _closed(connection: socket.socket, deadline: float) -> bool:
    """Return whether the daemon closes a connection in time."""
    for left in looks(deadline):
        connection.settimeout(max(_AT_ONCE, left))
        try:
            if not connection.recv(4096):
                return True
        except TimeoutError:
            break
        except OSError:
            return True
    return False


async def _connectAgain(client: AdminClient, before: Mapping[str, object]) -> socket.socket | None:
    """
    Connect again, as the daemon closes connections that are idle for long.

    @param before: the daemon's status.
    @return: L{None} if that daemon has ended.
    """
    try:
        after = await client.get("/v1/status")
    except NoDaemon:
        return None
    except AdminError:
        time.sleep(LOOK)  # it ends just now, and nothing else happens here
    else:
        if after["startedAt"] != before["startedAt"]:
            return None
    return _connect(client.path)
