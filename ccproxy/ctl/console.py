"""
C{ccproxyctl console}: what a VM's console has said last.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from .adminclient import AdminClient, AdminError
from .asking import ask, askingParser, findVM
from .output import say, write, writeBytes
from .printable import ConsoleText, printable


class NoConsole(AdminError):
    """The VM was registered without a console."""

    status = 5


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
    if options.raw and os.isatty(1):
        parser.error("--raw could do this terminal harm: send it into a file or a pipe")
    text = ConsoleText()
    silent = True

    def receive(data: bytes) -> None:
        nonlocal silent
        silent = False
        if options.raw:
            writeBytes(data)
        else:
            write(text.feed(data))

    async def work(client: AdminClient) -> None:
        vm = await findVM(client, options.vm)
        name = printable(options.vm)
        # Older daemons do not tell.
        if vm.get("console", True) is None:
            raise NoConsole(f"the VM {name!r} was registered without a console")
        query = {"follow": 1} if options.follow else {}
        await client.stream(f"/v1/vms/{vm['serial']}/console", receive, **query)
        write(text.feed(b"", final=True))
        if silent:
            say(f"The console of the VM {name!r} has said nothing yet.")

    return ask(parser, options, work)
