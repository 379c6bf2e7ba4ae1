"""
C{ccproxyctl shim}: what a runtime starts for each process, in the place of C{cc-shim}.

Its differences from C{cc-shim}: stdin waits for the answer to ConnectShim; a lost connection is
made again whatever it was doing; a terminal without a size is left alone; what it has to say goes
to the proxy's log, and to stderr, which belongs to the process, only if it can't go on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import CCProxyError
from ..shim.guard import Guard
from ..shim.local import LocalShim
from ..shim.signals import forShims, nameOf
from ..shim.stdio import secureDescriptors
from .arguments import addAddress, text
from .running import runReactor


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = argparse.ArgumentParser(
        prog="ccproxyctl shim",
        description="Stand for a process in a VM: connect its stdin, stdout, stderr and signals "
        "to ours, and exit with its status. The runtime that starts the process gives the token. "
        "A terminal at stdin becomes raw meanwhile.",
        epilog="Exit status: the process's; 125 if the shim itself fails; 2 for a bad option.",
    )
    parser.add_argument(
        "-c",
        "--container-id",
        type=text,
        required=True,
        metavar="ID",
        help="the container's name, for messages in the proxy's log",
    )
    parser.add_argument(
        "-t", "--token", type=text, required=True, help="the process's I/O token, from the proxy"
    )
    addAddress(parser)
    parser.add_argument("-d", "--debug", action="store_true", help="accepted, for cc-shim's sake")
    return parser


def joined(arguments: Sequence[str]) -> Iterator[str]:
    """
    The same words, but a token is joined with its option, as C{getopt} has it for C{cc-shim}: one
    token in 64 begins with a dash, and argparse would take it for an option.
    """
    words = iter(arguments)
    for word in words:
        token = next(words, None) if word in ("-t", "--token") else None
        yield word if token is None else f"--token={token}"


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{shim}.
    @return: the exit status.
    """
    options = makeParser().parse_args([*joined(arguments)])
    secureDescriptors()
    guard = Guard()

    async def work(reactor: Any) -> int:
        with LocalShim(reactor, options.path, os.isatty(0), forShims()) as local:
            shim = local.shim

            def refused(number: int, error: CCProxyError) -> None:
                shim.log(f"{nameOf(number)} was not delivered: {error}", options.container_id)

            shim.refused = refused
            local.tell = lambda text: shim.log(text, options.container_id)
            guard.watch(options.path, options.token)
            local.takeTerminal()
            await shim.connect(options.token)
            return await shim.finished

    try:
        return runReactor("shim", work)
    finally:
        guard.dismiss()
