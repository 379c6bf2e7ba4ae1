"""
What the commands have in common that ask the daemon over its admin socket.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from .adminclient import AdminClient, AdminError
from .arguments import addAdmin
from .output import NO_READER, OutputError, say, write
from .printable import printable
from .running import runReactor
from .tables import Column, grid

#: What each exit status of these commands means. Ended by a signal, Ctrl-C for example, they end by
#: that signal.
STATUSES = {
    0: "done",
    1: "the daemon refused, or did not answer, or the output could not be written",
    2: "something on the command line makes no sense",
    3: "no daemon answers at the admin socket",
    4: "this user may not ask it",
    5: "there is no such VM, or it has no console",
    NO_READER: "what reads the output has gone",
}


class UnknownVM(AdminError):
    """There is no VM of that name."""

    status = 5


def askingParser(
    name: str, description: str, json: bool = False, unknown: bool = False
) -> argparse.ArgumentParser:
    """
    The beginning of such a command's parser.

    @param name: the command.
    @param json: whether it can print JSON.
    @param unknown: whether what it asks for may not exist.
    """
    parser = argparse.ArgumentParser(
        prog=f"ccproxyctl {name}",
        description=description,
        epilog=f"Exit status: {_statuses(0, 1, 2, 3, 4, *((5,) if unknown else ()))}.",
    )
    addAdmin(parser)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def _statuses(*which: int) -> str:
    return "; ".join(f"{status} {STATUSES[status]}" for status in which)


def ask(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    work: Callable[[AdminClient], Coroutine[Any, Any, None]],
) -> int:
    """
    Ask the daemon.

    @param parser: that of the command, for messages.
    @param options: what it has parsed.
    @param work: does what there is to do.
    @return: the exit status.
    """
    # Nothing is to be done at the end that a signal would hinder.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    async def asking(reactor: Any) -> int:
        try:
            await work(AdminClient(reactor, options.adminSocket))
        except AdminError as error:
            say(f"{parser.prog}: {error}")
            return error.status
        except OutputError as error:
            return error.report(parser.prog)
        return 0

    return runReactor(parser.prog.partition(" ")[2], asking)


def show(lines: Iterable[str]) -> None:
    """Print lines at once."""
    write("".join(f"{line}\n" for line in lines))


def showJSON(value: object) -> None:
    """Print JSON, in which nothing is but printable ASCII."""
    show([json.dumps(value, indent=2)])


def showTable(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    path: str,
    columns: Sequence[Column],
    none: str,
    vm: str | None = None,
) -> int:
    """
    Ask for a list, and show it.

    @param path: where the daemon has it.
    @param none: what to say, on stderr, if it is empty.
    @param vm: the one VM that it is of, if not of all.
    @return: the exit status.
    """

    async def work(client: AdminClient) -> None:
        if vm is None:
            rows = await client.get(path)
        else:
            await findVM(client, vm)
            rows = await client.get(path, vm=vm)
        if options.json:
            showJSON(rows)
        elif rows:
            show(grid(columns, rows))
        else:
            say(none)

    return ask(parser, options, work)


async def findVM(client: AdminClient, name: str) -> dict[str, Any]:
    """
    Return what the daemon tells of the newest VM of that name.

    @raise UnknownVM: there is none.
    """
    vms: list[dict[str, Any]] = await client.get("/v1/vms")
    found = [vm for vm in vms if vm["containerId"] == name]
    if not found:
        raise UnknownVM(f"there is no VM {printable(name)!r}: ccproxyctl vms shows which there are")
    return max(found, key=lambda vm: int(vm["serial"]))
