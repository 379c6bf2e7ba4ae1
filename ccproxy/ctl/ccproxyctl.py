"""
C{ccproxyctl}: the command line beside the daemon.

Each command is a module with a C{main}, which takes the words after the command's name and gives
the exit status. Only the module of the command that is asked for is imported.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .. import __version__
from ..service.earlysignals import release
from .arguments import BadWord
from .output import OutputError, flush, say, secureStreams

#: The module of each command, which has C{makeParser} and C{main}, and what the command does.
COMMANDS = {
    "run": ("run", "start a container in a VM, connected to this terminal"),
    "exec": ("exec", "start one more process in a running container"),
    "shim": ("shim", "stand for a process in a VM, as a runtime's shim"),
    "demo": ("demo", "start a proxy with an embedded VM, for one command in it"),
    "vm": ("vm", "start, stop and list real VMs"),
    "status": ("status", "show the daemon's version, and what it has to do"),
    "vms": ("vms", "list the VMs"),
    "sessions": ("sessions", "list the processes in VMs, from their tokens to their ends"),
    "clients": ("clients", "list who is connected"),
    "commands": ("commands", "list the commands that have no answer yet"),
    "top": ("top", "watch the VMs by their throughput"),
    "events": ("events", "show what happens, as it happens"),
    "console": ("console", "show what a VM's console has said"),
    "dump": ("dump", "print the whole state of the daemon"),
    "loglevel": ("loglevel", "show or set how much the daemon logs"),
    "drain": ("drain", "have the daemon take no new VMs"),
    "stop": ("stop", "end the daemon in order"),
    "restart": ("restart", "restart the daemon, and close no connection"),
    "supervise": ("supervise", "run the daemon, and keep its connections over its restarts"),
    "check-config": ("checkconfig", "check a configuration file"),
    "completion": ("completion", "print what a shell needs to complete these commands"),
}


def makeParser() -> argparse.ArgumentParser:
    """What the command line may begin with."""
    commands = "\n".join(f"  {name:<14}{help}" for name, (_, help) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ccproxyctl",
        usage="ccproxyctl COMMAND [OPTION...]",
        description="Run processes in the VMs of a proxy, and look after the proxy.",
        epilog=f"commands:\n{commands}\n\nccproxyctl COMMAND --help says more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ccproxyctl {__version__}")
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def commandParsers() -> dict[str, argparse.ArgumentParser]:
    """What the command line of each command may say, for completion and documentation."""
    return {name: _module(name).makeParser() for name in COMMANDS}


def _module(command: str) -> Any:
    return import_module(f"{__package__}.{COMMANDS[command][0]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    @param arguments: the command line without the program's name, our own by default.
    @return: the exit status.
    """
    if arguments is None:
        secureStreams()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # Until the command knows better: its modules take a while to load.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            if not words or words[0] not in COMMANDS:
                # Prints help, version or an error, and exits.
                makeParser().parse_args(words[:1])
            command = _module(words[0])
            if words[0] != "supervise":
                # Neither this command nor what it starts shall hold them back; the supervisor
                # does so until it has handlers for them.
                release()
            status: int = command.main(words[1:])
        finally:
            # Also after --help.
            flush()
    except BadWord as error:
        say(f"ccproxyctl {words[0]}: {error}")
        return 2
    except OutputError as error:
        return error.report(" ".join(["ccproxyctl", *words[:1]]))
    return status


if __name__ == "__main__":
    sys.exit(main())
