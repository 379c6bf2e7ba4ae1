"""
C{ccproxyctl console}: what a VM's console has said last.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .adminclient import AdminClient
from .asking import ask, askingParser, findVM, write
from .printable import ConsoleText


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = askingParser(
        "console",
        "Show what the console of a VM has said last, as much of it as the daemon keeps. Whatever "
        "could steer a terminal is escaped.",
        unknown=True,
    )
    parser.add_argument("vm", metavar="VM", help="the VM's containerId; the newest of that name")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what it says, until the VM is gone"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="write what the guest wrote, byte by byte: into a file or a pipe only",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{console}.
    @return: the exit status.
    """
    parser = makeParser()
    options = parser.parse_args(arguments)
    if options.raw and os.isatty(sys.stdout.fileno()):
        parser.error("--raw could do this terminal harm: send it into a file or a pipe")
    text = ConsoleText()

    def receive(data: bytes) -> None:
        if options.raw:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        else:
            write(text.feed(data))

    async def work(client: AdminClient) -> None:
        serial = await findVM(client, options.vm)
        query = {"follow": 1} if options.follow else {}
        await client.stream(f"/v1/vms/{serial}/console", receive, **query)
        write(text.feed(b"", final=True))

    return ask(parser, options, work)
